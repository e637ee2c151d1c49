"""Native causal attention equals softmax over whole matrices, values and gradients.

Shapes: B sequences, S tokens, H heads, N and R query widths without and with rotary position,
V value width, E = N + V.
"""

import pytest
import torch
from torch import Tensor

from moestro.ops.causal import attend_natively, causal_kernels
from moestro.ops.native import NativeKernels, load_native

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
# One block of 64 queries and several, the last one short; B, S, H, N, R, V.
SHAPES = [(2, 64, 3, 16, 16, 32), (1, 160, 2, 32, 32, 64), (3, 32, 1, 16, 48, 32)]
SCALE = 0.3
# Queries, weights and results are rounded to bfloat16 on the way, each to 1 in 512.
CLOSE = 0.01


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(request.param, load_native())


def draw(shape: tuple[int, int, int, int, int, int]) -> list[Tensor]:
    """Return nope_BSHN, rope_BSHR, expanded_BSHE, rope_BSR and the output's gradient."""
    B, S, H, N, R, V = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(B, S, H, N), (B, S, H, R), (B, S, H, N + V), (B, S, R), (B, S, H, V)]
    return [torch.randn(size, generator=generator).bfloat16() for size in sizes]


def run(kernels: NativeKernels, parts: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of the four inputs."""
    nope, rope, expanded, shared, toward = parts
    leaves = [each.clone().requires_grad_() for each in (nope, rope, expanded, shared)]
    out = attend_natively(kernels, (leaves[0], leaves[1]), (leaves[2], leaves[3]), SCALE)
    out.backward(toward)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def run_exactly(parts: list[Tensor]) -> list[Tensor]:
    leaves = [each.double().requires_grad_() for each in parts[:4]]
    nope, rope, expanded, shared = leaves
    B, S, H, N = nope.shape
    shared_BSHR = shared[:, :, None].expand(B, S, H, shared.shape[-1])
    query = torch.cat([nope, rope], dim=-1).transpose(1, 2)
    key = torch.cat([expanded[..., :N], shared_BSHR], dim=-1).transpose(1, 2)
    future_SS = torch.ones(S, S, dtype=torch.bool).triu(1)
    weights = (query @ key.mT * SCALE).masked_fill(future_SS, -torch.inf).softmax(dim=-1)
    out = (weights @ expanded[..., N:].transpose(1, 2)).transpose(1, 2)
    out.backward(parts[4].double())
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_equals_whole_matrices_in_values_and_gradients(
    kernels: NativeKernels, shape: tuple[int, int, int, int, int, int]
) -> None:
    parts = draw(shape)
    for found, expected in zip(run(kernels, parts), run_exactly(parts), strict=True):
        assert float((found.double() - expected).norm() / expected.norm()) < CLOSE


def test_every_number_of_threads_gives_the_same_bits(kernels: NativeKernels) -> None:
    parts, before, found = draw(SHAPES[1]), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(run(kernels, parts))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_the_future_changes_nothing(kernels: NativeKernels) -> None:
    parts = draw(SHAPES[0])
    changed = [part.clone() for part in parts]
    for part in changed:
        part[:, 40:] += 1
    first, second = run(kernels, parts)[0], run(kernels, changed)[0]
    assert torch.equal(first[:, :40], second[:, :40])
    assert not torch.equal(first[:, 40:], second[:, 40:])


def test_parts_of_larger_arrays_are_read_where_they_lie(kernels: NativeKernels) -> None:
    parts = draw(SHAPES[0])
    query = torch.cat(parts[:2], dim=-1)
    latents = torch.cat([torch.ones(2, 64, 48).bfloat16(), parts[3]], dim=-1)
    views = [query[..., :16], query[..., 16:], parts[2], latents[..., 48:]]
    out = attend_natively(kernels, (views[0], views[1]), (views[2], views[3]), SCALE)
    assert torch.equal(out, run(kernels, parts)[0])


def test_only_what_the_kernels_take_goes_to_them() -> None:
    nope, rope, expanded, *_ = draw(SHAPES[0])
    assert causal_kernels(nope, rope, expanded) is not None
    assert causal_kernels(nope.float(), rope.float(), expanded.float()) is None
    assert causal_kernels(nope[:, :33], rope[:, :33], expanded[:, :33]) is None
    assert causal_kernels(nope[:, :32], rope[:, :32], expanded) is None
