"""A gate's native pass equals its torch twin, values and gradients, and so do the balance losses.

Shapes: T tokens, D width, E experts, K slots.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.gate import Gate
from moestro.model.trace import GateRecord, Trace
from moestro.ops.kernels import TorchKernels, Visits
from moestro.ops.native import NativeKernels, load_native
from moestro.ops.scoring import balance_loss
from moestro.train.balance import row_losses, sequence_loss, z_loss
from tests.builders import tiny_config
from tests.parity.chosen import use
from tests.parity.threads import threads

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
NUM_TOKENS, NUM_SEQUENCES = 330, 5
TABLE = BudgetConfig(
    fractions=(0.0, 0.25, 0.5, 0.75, 1.0), thresholds=((-0.05, -0.1, -0.15, -0.25, -0.6),)
)
GATES: dict[str, dict[str, Any]] = {
    "two to four, by budget": {"budget": TABLE},
    "no table": {},
    "groups": {"n_group": 4, "topk_group": 2, "n_routed_experts": 12},
    "more experts than a panel": {"n_routed_experts": 20, "num_experts_per_tok": 6},
    "scores are weights": {"norm_topk_prob": False, "routed_scaling_factor": 2.5},
    "softmax": {"model_type": "deepseek_v2", "topk_method": "greedy"},
    "normalized softmax": {
        "model_type": "deepseek_v2",
        "topk_method": "greedy",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
    "softmax in groups": {
        "model_type": "deepseek_v2",
        "topk_method": "group_limited_greedy",
        "n_group": 2,
        "topk_group": 1,
    },
}
every_gate = pytest.mark.parametrize("changes", GATES.values(), ids=GATES)


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NativeKernels:
    native = NativeKernels(request.param, load_native())
    use(native, monkeypatch)
    return native


def make_gate(config: ModelConfig) -> Gate:
    gate = Gate(config, moe_layer=0)
    torch.nn.init.normal_(gate.weight, std=0.4, generator=torch.Generator().manual_seed(1))
    if gate.e_score_correction_bias is not None:
        gate.e_score_correction_bias.copy_(torch.linspace(-0.1, 0.1, config.n_routed_experts))
    return gate


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(config: ModelConfig) -> tuple[GateRecord, list[Tensor]]:
    """Return what a gate made of random tokens, and the gradients of a loss of all its parts."""
    gate, trace = make_gate(config), Trace()
    x_TD = draw(NUM_TOKENS, 16, seed=2).bfloat16().requires_grad_()
    fraction_T = torch.linspace(0, 1, NUM_TOKENS)
    gate(x_TD, fraction_T, trace)
    (record,) = trace.gates
    parts = record.logits_TE, record.scores_TE, record.weights_TK
    sum((part * draw(*part.shape, seed=i)).sum() for i, part in enumerate(parts)).backward()
    assert x_TD.grad is not None
    assert gate.weight.grad is not None
    return record, [x_TD.grad, gate.weight.grad]


def compare(found: Tensor, expected: Tensor, share: float) -> None:
    assert found.shape == expected.shape
    gap = (found.detach().double() - expected.detach()).norm()
    assert float(gap) <= share * float(expected.detach().double().norm())


@every_gate
def test_a_pass_equals_torchs_and_so_do_its_gradients(
    changes: dict[str, Any], kernels: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**changes)
    record, gradients = run(config)
    use(TorchKernels(), monkeypatch)
    twin, expected = run(config)
    for name in ("experts_TK", "is_used_TK"):
        assert torch.equal(getattr(record, name), getattr(twin, name))
    for name in ("logits_TE", "scores_TE", "weights_TK", "ranked_TK"):
        compare(getattr(record, name), getattr(twin, name), 1e-5)
    # Groups that are ruled out are so in both.
    torch.testing.assert_close(record.selection_TE, twin.selection_TE)
    # Inputs' gradients are rounded to bfloat16.
    compare(gradients[0], expected[0], 0.005)
    compare(gradients[1], expected[1], 1e-4)


def test_a_part_that_nothing_follows_from_has_no_gradient(kernels: NativeKernels) -> None:
    gate, x_TD = make_gate(tiny_config()), draw(8, 16, seed=2).bfloat16()
    gate(x_TD, None, None).weights_TK.sum().backward()
    only_weights = gate.weight.grad
    assert only_weights is not None
    # Weights are shares of their sum, which therefore nothing moves.
    assert float(only_weights.abs().max()) < 1e-6


@pytest.mark.parametrize(("num_experts", "num_slots"), [(1, 1), (16, 4), (7, 7), (64, 8)])
def test_among_equal_scores_the_lower_number_comes_first(
    kernels: NativeKernels, num_experts: int, num_slots: int
) -> None:
    config = tiny_config(
        n_routed_experts=num_experts, num_experts_per_tok=num_slots, min_experts_per_tok=1
    )
    gate = make_gate(config)
    torch.nn.init.zeros_(gate.weight)
    assert gate.e_score_correction_bias is not None
    gate.e_score_correction_bias.copy_(draw(num_experts, seed=3).round())
    trace = Trace()
    gate(draw(3, 16, seed=2).bfloat16(), None, trace)
    expected = (0.5 + gate.e_score_correction_bias).sort(descending=True, stable=True)
    for row in range(3):
        assert torch.equal(trace.gates[0].ranked_TK[row], expected.values[:num_slots])
        assert torch.equal(trace.gates[0].experts_TK[row], expected.indices[:num_slots])


def test_what_is_no_number_is_chosen_last_and_only_once(kernels: NativeKernels) -> None:
    gate = make_gate(tiny_config(n_routed_experts=4, num_experts_per_tok=4))
    gate.weight.data[[0, 2]] = torch.nan
    experts_TK = gate(draw(9, 16, seed=2).bfloat16(), None, None).experts_TK
    assert experts_TK[:, 2:].tolist() == [[0, 2]] * 9
    assert experts_TK[:, :2].sort().values.tolist() == [[1, 3]] * 9


def test_every_number_of_threads_gives_the_same_bits(kernels: NativeKernels) -> None:
    found = []
    for number in (1, 2, 3):
        with threads(number):
            record, gradients = run(tiny_config(budget=TABLE))
        found.append([record.weights_TK.detach(), *gradients])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@every_gate
@pytest.mark.parametrize("weights", [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_balance_losses_equal_torchs_and_so_do_their_gradients(
    weights: tuple[float, float], changes: dict[str, Any], kernels: NativeKernels
) -> None:
    trace = Trace()
    make_gate(tiny_config(**changes))(
        draw(NUM_TOKENS, 16, seed=2).bfloat16(), torch.linspace(0, 1, NUM_TOKENS), trace
    )
    (record,) = trace.gates
    leaves = record.logits_TE, record.scores_TE
    found = row_losses(record, NUM_SEQUENCES, weights)
    expected = weights[0] * sequence_loss(record, NUM_SEQUENCES) + weights[1] * z_loss(record)
    torch.testing.assert_close(found, expected)
    # Twice the loss, as a share of a batch would be, has twice the gradients.
    for ours, theirs in zip(
        torch.autograd.grad(2 * found, leaves, materialize_grads=True),
        torch.autograd.grad(2 * expected, leaves, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_balance_counts_no_slot_that_is_not_in_use(kernels: NativeKernels) -> None:
    T, E, K = 6, 4, 2
    gate = draw(T, E, seed=1), draw(T, E, seed=2).sigmoid()
    experts_TK, weights_TK = torch.arange(T * K).view(T, K) % E, torch.ones(T, K)
    is_used_TK = torch.tensor([True, False]).expand(T, K).contiguous()
    losses = [
        balance_loss(kernels, gate, Visits(each_TK, weights_TK, is_used_TK), 2, (0.3, 0.2))
        for each_TK in (experts_TK, experts_TK.where(is_used_TK, 2**40))
    ]
    assert torch.equal(*losses)


def test_balance_refuses_an_expert_that_is_not_there(kernels: NativeKernels) -> None:
    gate = draw(1, 4, seed=1), draw(1, 4, seed=2).sigmoid()
    beyond = Visits(torch.tensor([[4]]), torch.ones(1, 1), torch.tensor([[True]]))
    with pytest.raises(IndexError, match="no such expert"):
        balance_loss(kernels, gate, beyond, 1, (0.3, 0.2))
