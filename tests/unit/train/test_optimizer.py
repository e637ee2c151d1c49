"""Which optimizer moves which weight, and that its state survives to the bit."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moestro.errors import ConfigError
from moestro.model.model import Transformer
from moestro.train.config import OptimizerConfig
from moestro.train.optimizer import Optimizers
from tests.builders import random_model, tiny_config

MUON = OptimizerConfig(kind="muon", learning_rate=0.01, adamw_learning_rate=0.003)
ADAMW = OptimizerConfig(kind="adamw", learning_rate=0.01)


@pytest.mark.parametrize("config", [MUON, ADAMW], ids=lambda config: config.kind)
def test_a_copy_with_the_saved_state_goes_on_to_the_bit(config: OptimizerConfig) -> None:
    model = build_model()
    optimizers = Optimizers(model, config)
    run(model, optimizers, range(3))
    copy = build_model()
    copy.load_state_dict(model.state_dict())
    resumed = Optimizers(copy, config)
    resumed.load_state({name: value.clone() for name, value in optimizers.state().items()})
    for twin, its in ((model, optimizers), (copy, resumed)):
        run(twin, its, range(3, 6))
    assert_equal(copy.state_dict(), model.state_dict())
    assert_equal(resumed.state(), optimizers.state())


def test_without_its_state_a_copy_goes_elsewhere() -> None:
    model = build_model()
    optimizers = Optimizers(model, MUON)
    run(model, optimizers, range(3))
    copy = build_model()
    copy.load_state_dict(model.state_dict())
    run(model, optimizers, range(3, 4))
    run(copy, Optimizers(copy, MUON), range(3, 4))
    assert not torch.equal(copy.embed_tokens.weight, model.embed_tokens.weight)


def test_muon_moves_the_matrices_and_adamw_the_rest() -> None:
    model = build_model()
    optimizers = Optimizers(model, MUON)
    run(model, optimizers, range(1))
    by_muon = {key.rpartition("|")[0] for key in optimizers.state() if key.endswith("|momentum")}
    by_adamw = {key.rpartition("|")[0] for key in optimizers.state() if key.endswith("|exp_avg")}
    assert by_muon | by_adamw == {name for name, _ in model.named_parameters()}
    assert not by_muon & by_adamw
    assert {"embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight"} <= by_adamw
    assert {"layers.1.mlp.experts.down_proj", "layers.0.self_attn.o_proj.weight"} <= by_muon
    assert all(model.get_parameter(name).ndim >= 2 for name in by_muon)
    assert all(name in by_adamw for name, p in model.named_parameters() if p.ndim == 1)


def test_adamw_alone_moves_everything() -> None:
    model = build_model()
    optimizers = Optimizers(model, ADAMW)
    run(model, optimizers, range(1))
    assert {key.rpartition("|")[2] for key in optimizers.state()} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


def test_adamw_alone_has_one_learning_rate() -> None:
    for config in (ADAMW, replace(ADAMW, adamw_learning_rate=ADAMW.learning_rate)):
        parts = Optimizers(build_model(), config)._parts
        assert [rate for _, rate in parts] == [ADAMW.learning_rate]


def test_shapes_that_coincide_are_no_obstacle() -> None:
    # Queries of 2 heads x 10 and a gate-and-up of 2 x 10 rows are both 20 x 16.
    model = random_model(tiny_config(intermediate_size=10))
    before = model.state_dict()["layers.0.self_attn.q_proj.weight"].clone()
    run(model, Optimizers(model, MUON), range(1))
    assert not torch.equal(model.state_dict()["layers.0.self_attn.q_proj.weight"], before)


def test_gradients_are_clipped_and_their_norm_is_reported() -> None:
    model = build_model()
    fill_gradients(model, 0)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    expected = float(torch.cat([g.flatten() for g in gradients]).norm())
    norm = Optimizers(model, MUON).apply(1.0)
    assert norm == pytest.approx(expected, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_no_weight(odd: float) -> None:
    model = build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fill_gradients(model, 0)
    gradient = model.embed_tokens.weight.grad
    assert gradient is not None
    gradient[0, 0] = odd
    with pytest.raises(ConfigError, match=r"gradients' norm is (nan|inf): lower train"):
        Optimizers(model, MUON).apply(1.0)
    assert_equal(model.state_dict(), before)


def test_the_schedule_scales_every_learning_rate() -> None:
    model = build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fill_gradients(model, 0)
    Optimizers(model, MUON).apply(0.0)
    assert_equal(model.state_dict(), before)


def test_norms_and_biases_do_not_decay() -> None:
    model = build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Optimizers(model, MUON).apply(1.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim == 1), name


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("learning_rate is 0", {"learning_rate": 0.0}),
        ("adamw_learning_rate is -1", {"adamw_learning_rate": -1.0}),
        ("clip_norm is 0", {"clip_norm": 0.0}),
        ("momentum is 1", {"momentum": 1.0}),
        ("beta1 is -0.1", {"beta1": -0.1}),
        ("newton_schulz_steps is 0", {"newton_schulz_steps": 0}),
        ("newton_schulz_steps is 1000000000", {"newton_schulz_steps": 10**9}),
        (r"^learning_rate is 1e\+300: .* at most 100", {"learning_rate": 1e300}),
        (r"adamw_learning_rate is 1e\+300: .* at most 100", {"adamw_learning_rate": 1e300}),
        (
            "adamw_learning_rate is 0.001, but with kind adamw all weights have learning_rate",
            {"kind": "adamw", "adamw_learning_rate": 0.001},
        ),
    ],
)
def test_a_rate_that_cannot_train_is_refused(message: str, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**changes)  # type: ignore[arg-type]


def build_model() -> Transformer:
    return random_model(tiny_config(num_nextn_predict_layers=1, attention_bias=True))


def run(model: Transformer, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        fill_gradients(model, step)
        optimizers.apply(1.0)


def fill_gradients(model: Transformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert not [name for name in actual if not torch.equal(actual[name], expected[name])]


def test_state_that_lacks_a_weight_is_refused() -> None:
    model = build_model()
    optimizers = Optimizers(model, MUON)
    run(model, optimizers, range(1))
    state = {name: t for name, t in optimizers.state().items() if not name.startswith("norm.")}
    with pytest.raises(KeyError, match=r"norm\.weight is on one side only"):
        Optimizers(model, MUON).load_state(state)


def test_state_of_another_shape_is_refused() -> None:
    model = build_model()
    optimizers = Optimizers(model, MUON)
    run(model, optimizers, range(1))
    state = optimizers.state()
    state["norm.weight|exp_avg"] = state["norm.weight|exp_avg"][:-1]
    with pytest.raises(KeyError, match=r"norm\.weight has shape"):
        Optimizers(model, MUON).load_state(state)
