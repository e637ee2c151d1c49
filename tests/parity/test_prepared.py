"""A prepared model computes what it did before, and gives the same bits in any company."""

import copy

import pytest
import torch

from moestro.engine.engine import choose_row_multiples
from moestro.model.model import Transformer
from moestro.model.prepare import prepare
from moestro.ops.choose import choose_kernels
from moestro.ops.kernels import Kernels, TorchKernels
from moestro.ops.native import NativeKernels
from moestro.ops.panels import WeightKind
from tests.builders import linear_budget, random_model, random_tokens, tiny_config
from tests.parity.test_engine import MODEL, SAMPLED, ask, bits, build, crowd, run

KERNELS = [TorchKernels(), choose_kernels("auto").kernels]


@pytest.fixture(params=KERNELS, ids=lambda kernels: kernels.name)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.param


def prepared(model: Transformer, kernels: Kernels, kind: WeightKind = "float32") -> Transformer:
    twin = copy.deepcopy(model)
    prepare(twin, kernels, kind)
    return twin


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": 12, "attention_bias": True},
        {"tie_word_embeddings": True},
        {"n_shared_experts": 2},
        {"n_routed_experts": 8, "num_nextn_predict_layers": 1},
    ],
)
def test_a_prepared_model_computes_the_same(kernels: Kernels, changes: dict[str, object]) -> None:
    config = tiny_config(**changes)
    model = random_model(config.with_budget(linear_budget(config)))
    tokens_BS = random_tokens(config, 2, 13)
    other = prepared(model, kernels)
    with torch.no_grad():
        for budget in (None, 2.5):
            expected = model.logits(model(tokens_BS, budget=budget))
            found = other.logits(other(tokens_BS, budget=budget))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_is_as_close_as_torchs_own(kernels: Kernels) -> None:
    config = tiny_config()
    model = random_model(config)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    half = copy.deepcopy(model)
    half.compute_dtype = torch.bfloat16
    other = prepared(model, kernels, "bfloat16")
    tokens_BS = random_tokens(config, 1, 9)
    with torch.no_grad():
        exact, torchs, ours = (each.logits(each(tokens_BS)) for each in (model, half, other))
    assert (ours - exact).abs().max() <= 1.2 * (torchs - exact).abs().max()


def test_memory_holds_the_weights_once(kernels: Kernels) -> None:
    model = prepared(random_model(tiny_config()), kernels)
    left = {name for name, _ in model.named_parameters() if "norm" not in name}
    assert all(name.endswith("gate.weight") or name == "embed_tokens.weight" for name in left)


def test_a_prepared_engine_gives_the_same_bits_in_any_company() -> None:
    model = prepared(MODEL, KERNELS[-1])
    requests = [ask("alone", length=37), ask("drawn", length=8, sampling=SAMPLED, experts=2.5)]
    for request in requests:
        alone = run(build(model), [request])[request.id, 0]
        beside = run(build(model), [*crowd(12), request], every=2)[request.id, 0]
        assert bits(alone) == bits(beside)


@pytest.mark.skipif(not isinstance(KERNELS[-1], NativeKernels), reason="no native kernels")
def test_only_where_bits_are_free_a_long_prompt_is_expanded() -> None:
    answers = []
    for is_batch_invariant in (True, False):
        model = prepared(MODEL, KERNELS[-1])
        engine = build(model, is_batch_invariant=is_batch_invariant)
        assert model.stack is not None
        assert model.stack.can_expand is not is_batch_invariant
        tokens = run(engine, [ask("long", length=200)])["long", 0]
        answers.append([(new.score.token_id, new.score.logprob) for new in tokens])
    same, free = (zip(*answer, strict=True) for answer in answers)
    assert next(same) == next(free)
    assert list(next(same)) == pytest.approx(list(next(free)), abs=1e-3)
    assert answers[0] != answers[1]


def test_a_prepared_batch_needs_no_filling_up() -> None:
    model = prepared(MODEL, KERNELS[-1])
    multiples = choose_row_multiples(model)
    assert multiples.tokens == 1
    # Where all layers are native, attention is too.
    assert model.stack is None or multiples.queries == 1
