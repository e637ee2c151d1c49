"""The fast experts equal the plain ones, values and gradients, however tokens fall to experts.

Shapes: T tokens, K slots per token, D width, E experts, F expert width, G = 2F.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moestro.ops.grouped import (
    Pairs,
    apply_experts,
    apply_experts_one_by_one,
    sort_pairs,
)

E, D, F = 5, 6, 4
Apply = Callable[[Tensor, Tensor, Pairs, Tensor, Tensor], Tensor]


def spread(num_tokens: int, num_slots: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_tokens, E, generator=generator).topk(num_slots).indices


def everything(experts_TK: Tensor) -> Tensor:
    return torch.ones_like(experts_TK, dtype=torch.bool)


def first_slots(experts_TK: Tensor, seed: int = 0) -> Tensor:
    T, K = experts_TK.shape
    counts_T1 = torch.randint(1, K + 1, (T, 1), generator=torch.Generator().manual_seed(seed))
    return torch.arange(K) < counts_T1


EMPTY = torch.tensor([[0, 2], [2, 0], [0, 2], [4, 0]])
CASES = {
    "all slots": (spread(11), everything(spread(11))),
    "unused slots": (spread(11), first_slots(spread(11))),
    "empty experts": (EMPTY, everything(EMPTY)),
    "all tokens on one expert": (torch.full((7, 1), 3), torch.ones(7, 1, dtype=torch.bool)),
    "one token": (spread(1), everything(spread(1))),
    "one token, one slot": (spread(1, 1), everything(spread(1, 1))),
    "every expert": (spread(4, E), everything(spread(4, E))),
}


@pytest.mark.parametrize(("experts_TK", "is_used_TK"), CASES.values(), ids=CASES.keys())
def test_fast_equals_one_by_one_in_values_and_gradients(
    experts_TK: Tensor, is_used_TK: Tensor
) -> None:
    fast = run(apply_experts, experts_TK, is_used_TK)
    slow = run(apply_experts_one_by_one, experts_TK, is_used_TK)
    for ours, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)


@given(num_tokens=st.integers(1, 40), num_slots=st.integers(1, E), seed=st.integers(0, 1000))
def test_fast_equals_one_by_one_for_any_choice(num_tokens: int, num_slots: int, seed: int) -> None:
    experts_TK = spread(num_tokens, num_slots, seed)
    is_used_TK = first_slots(experts_TK, seed)
    fast = run(apply_experts, experts_TK, is_used_TK)
    slow = run(apply_experts_one_by_one, experts_TK, is_used_TK)
    for ours, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", ["unused slots", "empty experts", "one token"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    experts_TK, is_used_TK = CASES[name]
    pairs = sort_pairs(experts_TK, is_used_TK, E)
    x_TD, weights_TK, gate_up_EGD, down_EDF = inputs(experts_TK)

    def apply(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return apply_experts(x, weights * is_used_TK, pairs, gate_up, down)

    assert torch.autograd.gradcheck(apply, (x_TD, weights_TK, gate_up_EGD, down_EDF))


def test_an_unused_slot_passes_no_gradient_to_its_weight_or_its_expert() -> None:
    experts_TK, is_used_TK = torch.tensor([[0, 1]]), torch.tensor([[True, False]])
    _, _, dweights_TK, dgate_up_EGD, ddown_EDF = run(apply_experts, experts_TK, is_used_TK)
    assert dweights_TK[0, 1] == 0
    assert not dgate_up_EGD[1:].any()
    assert not ddown_EDF[1:].any()
    assert dgate_up_EGD[0].any()


def test_a_tokens_result_is_its_own_whatever_its_neighbors_choose() -> None:
    experts_TK = spread(9)
    others_TK = torch.cat([experts_TK[:1], spread(8, seed=1)])
    x_TD, weights_TK, gate_up_EGD, down_EDF = inputs(experts_TK)
    first = [
        apply_experts(x_TD, weights_TK, sort_pairs(e, everything(e), E), gate_up_EGD, down_EDF)[0]
        for e in (experts_TK, others_TK)
    ]
    # Not in every bit: torch's products may sum few rows in another order than many.
    torch.testing.assert_close(first[0], first[1], atol=1e-12, rtol=1e-10)


def test_pairs_are_sorted_by_expert_and_within_one_by_token() -> None:
    experts_TK = spread(13)
    is_used_TK = first_slots(experts_TK)
    pairs = sort_pairs(experts_TK, is_used_TK, E)
    assert pairs.borders[-1] == int(is_used_TK.sum()) == len(pairs.token_P)
    for expert in range(E):
        tokens = pairs.token_P[pairs.borders[expert] : pairs.borders[expert + 1]].tolist()
        chose = ((experts_TK == expert) & is_used_TK).any(dim=1).nonzero()[:, 0].tolist()
        assert tokens == chose
    assert bool((pairs.slot_TK[~is_used_TK] == pairs.borders[-1]).all())
    used = pairs.slot_TK[is_used_TK]
    assert used.sort().values.tolist() == list(range(pairs.borders[-1]))


def inputs(experts_TK: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(len(experts_TK), D), tuple(experts_TK.shape), (E, 2 * F, D), (E, D, F)]
    return tuple(
        torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes
    )


def run(apply: Apply, experts_TK: Tensor, is_used_TK: Tensor) -> list[Tensor]:
    """Return the output and the gradients of all four tensors."""
    leaves = inputs(experts_TK)
    x_TD, weights_TK, gate_up_EGD, down_EDF = leaves
    pairs = sort_pairs(experts_TK, is_used_TK, E)
    out_TD = apply(x_TD, weights_TK * is_used_TK, pairs, gate_up_EGD, down_EDF)
    generator = torch.Generator().manual_seed(6)
    toward_TD = torch.randn(out_TD.shape, generator=generator, dtype=out_TD.dtype)
    out_TD.backward(toward_TD)
    return [out_TD.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("multiple", [4, 8])
def test_filling_experts_up_changes_no_result(multiple: int) -> None:
    generator = torch.Generator().manual_seed(3)
    experts_TK = spread(13)
    is_used_TK = torch.rand(13, 3, generator=generator) > 0.3
    weights_TK = torch.rand(13, 3, generator=generator) * is_used_TK
    x_TD = torch.randn(13, D, generator=generator)
    gate_up_EGD = torch.randn(E, 2 * F, D, generator=generator)
    down_EDF = torch.randn(E, D, F, generator=generator)
    filled = sort_pairs(experts_TK, is_used_TK, E, multiple)
    assert all(border % multiple == 0 for border in filled.borders)
    expected = apply_experts(
        x_TD, weights_TK, sort_pairs(experts_TK, is_used_TK, E), gate_up_EGD, down_EDF
    )
    found = apply_experts(x_TD, weights_TK, filled, gate_up_EGD, down_EDF)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
