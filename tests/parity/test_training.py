"""The native passes of training equal their twins, values and gradients, whatever the threads.

Shapes: T tokens, K slots per token, E experts, D width, F expert width, G = 2F.
"""

import pytest
import torch
from torch import Tensor

from moestro.ops.grouped import apply_experts_one_by_one, sort_pairs
from moestro.ops.kernels import Visits
from moestro.ops.native import NativeKernels, load_native
from moestro.ops.training import ExpertSet, native_kernels, visit_experts, visit_natively
from tests.parity.threads import threads

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
# Tokens around a block of 64 pairs, widths of one band and of several; T, K, E, D, F.
EXPERTS = [(1, 1, 1, 64, 32), (37, 3, 5, 96, 64), (130, 2, 3, 32, 160), (200, 1, 1, 128, 96)]
# Inputs, hidden activations and results are rounded to bfloat16 on the way, each to 1 in 512.
CLOSE = 0.01


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(request.param, load_native())


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference, in that of what is expected."""
    return float((found.detach().double() - expected).norm() / expected.norm())


def visits(T: int, K: int, E: int, used: float = 0.7) -> Visits:
    generator = torch.Generator().manual_seed(3)
    experts_TK = torch.rand(T, E, generator=generator).topk(K).indices
    is_used_TK = torch.rand(T, K, generator=generator) <= used
    weights_TK = torch.rand(T, K, generator=generator) * is_used_TK
    return Visits(experts_TK, weights_TK, is_used_TK)


def leaves(T: int, E: int, D: int, F: int) -> list[Tensor]:
    drawn = (
        draw(T, D, seed=0),
        draw(E, 2 * F, D, seed=1, scale=D**-0.5),
        draw(E, D, F, seed=2, scale=F**-0.5),
    )
    return [each.bfloat16().requires_grad_() for each in drawn]


def run(kernels: NativeKernels, chosen: Visits, given: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of the inputs, the weights and both matrices."""
    x_TD, gate_up_EGD, down_EDF = (each.detach().clone().requires_grad_() for each in given)
    weights_TK = chosen.weights_TK.clone().requires_grad_()
    weighted = Visits(chosen.experts_TK, weights_TK, chosen.is_used_TK)
    experts = ExpertSet(gate_up_EGD, down_EDF, weighted)
    out_TD = visit_natively(kernels, x_TD, [experts], torch.zeros_like(x_TD))
    out_TD.backward(draw(*out_TD.shape, seed=5).bfloat16())
    gradients = [each.grad for each in (x_TD, weights_TK, gate_up_EGD, down_EDF)]
    return [out_TD.detach(), *(each for each in gradients if each is not None)]


def run_exactly(chosen: Visits, given: list[Tensor]) -> list[Tensor]:
    x_TD, gate_up_EGD, down_EDF = (each.detach().double().requires_grad_() for each in given)
    weights_TK = chosen.weights_TK.double().requires_grad_()
    pairs = sort_pairs(chosen.experts_TK, chosen.is_used_TK, len(down_EDF))
    scaled_TK = weights_TK * chosen.is_used_TK
    out_TD = apply_experts_one_by_one(x_TD, scaled_TK, pairs, gate_up_EGD, down_EDF)
    out_TD.backward(draw(*out_TD.shape, seed=5).bfloat16().double())
    gradients = [each.grad for each in (x_TD, weights_TK, gate_up_EGD, down_EDF)]
    return [out_TD.detach(), *(each for each in gradients if each is not None)]


@pytest.mark.parametrize("shape", EXPERTS)
def test_experts_equal_their_twin_in_values_and_gradients(
    kernels: NativeKernels, shape: tuple[int, int, int, int, int]
) -> None:
    T, K, E, D, F = shape
    chosen = visits(T, K, E, used=1.0 if T == 1 else 0.7)
    given = leaves(T, E, D, F)
    for found, expected in zip(
        run(kernels, chosen, given), run_exactly(chosen, given), strict=True
    ):
        assert distance(found, expected) < CLOSE


@pytest.mark.parametrize("nobody", [-1, 2**40])
def test_a_slot_not_in_use_may_name_any_expert(kernels: NativeKernels, nobody: int) -> None:
    T, K, E, D, F = 70, 3, 5, 64, 32
    chosen, given = visits(T, K, E), leaves(T, E, D, F)
    experts_TK = chosen.experts_TK.where(chosen.is_used_TK, nobody)
    other = Visits(experts_TK, chosen.weights_TK, chosen.is_used_TK)
    for found, expected in zip(
        run(kernels, other, given), run(kernels, chosen, given), strict=True
    ):
        assert torch.equal(found, expected)


def test_every_number_of_threads_gives_the_same_bits(kernels: NativeKernels) -> None:
    T, K, E, D, F = 210, 3, 5, 96, 64
    chosen, given = visits(T, K, E), leaves(T, E, D, F)
    with threads(1):
        alone = run(kernels, chosen, given)
    for number in (2, 3):
        with threads(number):
            together = run(kernels, chosen, given)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_token_gets_the_same_bits_whatever_its_neighbors_choose(kernels: NativeKernels) -> None:
    T, K, E, D, F = 100, 3, 5, 96, 64
    chosen, given = visits(T, K, E), leaves(T, E, D, F)
    whole = run(kernels, chosen, given)
    part = Visits(chosen.experts_TK[-7:], chosen.weights_TK[-7:], chosen.is_used_TK[-7:])
    alone = run(kernels, part, [given[0][-7:], *given[1:]])
    assert torch.equal(alone[0], whole[0][-7:])


def test_what_nobody_visits_has_no_gradient(kernels: NativeKernels) -> None:
    experts_TK = torch.tensor([[0, 2], [2, 0], [0, 2]])
    is_used_TK = torch.tensor([[True, False], [True, True], [True, False]])
    chosen = Visits(experts_TK, torch.ones(3, 2) * is_used_TK, is_used_TK)
    _, _, dweights_TK, dgate_up_EGD, ddown_EDF = run(kernels, chosen, leaves(3, 4, 32, 32))
    assert not dweights_TK[~is_used_TK].any()
    assert bool(dweights_TK[is_used_TK].all())
    for gradient in (dgate_up_EGD, ddown_EDF):
        assert [bool(gradient[e].any()) for e in range(4)] == [True, False, True, False]


def test_no_tokens_give_no_rows_and_gradients_of_zero(kernels: NativeKernels) -> None:
    out_TD, dx_TD, _, dgate_up_EGD, ddown_EDF = run(kernels, visits(0, 2, 3), leaves(0, 3, 32, 64))
    assert out_TD.shape == dx_TD.shape == (0, 32)
    assert not dgate_up_EGD.any()
    assert not ddown_EDF.any()


def test_an_expert_that_is_not_there_is_refused(kernels: NativeKernels) -> None:
    chosen = Visits(torch.tensor([[3]]), torch.ones(1, 1), torch.ones(1, 1).bool())
    with pytest.raises(IndexError, match="no such expert"):
        run(kernels, chosen, leaves(1, 3, 32, 32))


def test_a_layer_adds_routed_and_shared_experts_to_the_stream(kernels: NativeKernels) -> None:
    T, K, E, D, F = 70, 3, 5, 64, 96
    chosen = visits(T, K, E)
    given = [*leaves(T, E, D, F), *leaves(T, 1, D, 2 * F)[1:], draw(T, D, seed=7).bfloat16()]

    def run_layer(inputs: list[Tensor], is_native: bool) -> list[Tensor]:
        parts = [each.detach().clone().requires_grad_() for each in inputs]
        x_TD, gate_up_EGD, down_EDF, shared_1GD, shared_1DF, stream_TD = parts
        sets = [ExpertSet(gate_up_EGD, down_EDF, chosen), ExpertSet(shared_1GD, shared_1DF)]
        if is_native:
            out_TD = visit_natively(kernels, x_TD, sets, stream_TD)
        else:
            out_TD = visit_experts(x_TD, sets, stream_TD)
        out_TD.backward(draw(T, D, seed=5).to(out_TD.dtype))
        return [out_TD.detach(), *(each.grad for each in parts if each.grad is not None)]

    # float64 goes through torch.
    exact = run_layer([each.double() for each in given], is_native=False)
    for found, expected in zip(run_layer(given, is_native=True), exact, strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) < CLOSE


def test_only_what_the_kernels_take_goes_to_them() -> None:
    fitting, odd = (ExpertSet(torch.empty(3, 2 * F, 64), torch.empty(3, 64, F)) for F in (32, 48))
    x_TD = torch.empty(2, 64, dtype=torch.bfloat16)
    assert native_kernels(x_TD, [fitting]) is not None
    assert native_kernels(x_TD.float(), [fitting]) is None
    assert native_kernels(x_TD, [fitting, odd]) is None
