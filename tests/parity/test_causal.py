"""Native attention of a whole pass equals norms, rotations and softmax step by step in float64.

Shapes: B sequences, S tokens, H heads, N and R query widths without and with rotary position,
Q = N + R, V value width, E = N + V, C latent width, M = C + R.
"""

import pytest
import torch
from torch import Tensor

from moestro.ops import rope
from moestro.ops.causal import attend_natively, causal_kernels
from moestro.ops.latent import attend_alone
from moestro.ops.native import NativeKernels, load_native
from moestro.ops.projected import Projected, Rotary
from tests.parity.threads import threads

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
Shape = tuple[int, int, int, int, int, int, int]
# One block of 64 queries and several, the last one short; B, S, H, N, R, V, C.
SHAPES = [(2, 64, 3, 16, 16, 32, 48), (1, 160, 2, 32, 32, 64, 16), (3, 32, 1, 16, 48, 32, 32)]
SCALE = 0.3
# Queries, weights and results are rounded to bfloat16 on the way, each to 1 in 512.
CLOSE = 0.01


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(request.param, load_native())


def draw(shape: Shape) -> list[Tensor]:
    """Return query_BSHQ, compressed_BSM, norm_C, up_HEC and the output's gradient."""
    B, S, H, N, R, V, C = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(B, S, H, N + R), (B, S, C + R), (C,), (H, N + V, C), (B, S, H, V)]
    parts = [torch.randn(size, generator=generator).bfloat16() for size in sizes]
    parts[3] /= C**0.5
    return parts


def project(shape: Shape, parts: list[Tensor], is_interleaved: bool) -> Projected:
    S, R = shape[1], shape[4]
    angles = rope.angles(torch.arange(S), rope.frequencies(R, 10_000.0))
    return Projected(parts[0], parts[1], parts[2], 1e-6, Rotary(*angles, is_interleaved), SCALE)


def run(
    kernels: NativeKernels | None, shape: Shape, parts: list[Tensor], is_interleaved: bool = True
) -> list[Tensor]:
    """Return the output and the gradients of the four inputs; without kernels, step by step."""
    leaves = [each.clone().requires_grad_() for each in parts[:4]]
    projected = project(shape, leaves, is_interleaved)
    if kernels is None:
        out = attend_alone(projected, leaves[3], "naive")
    else:
        out = attend_natively(kernels, projected, leaves[3])
    out.backward(parts[4])
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("is_interleaved", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_equals_its_steps_in_values_and_gradients(
    kernels: NativeKernels, shape: Shape, is_interleaved: bool
) -> None:
    parts = draw(shape)
    found = run(kernels, shape, parts, is_interleaved)
    # float64 goes through torch.
    exact = run(None, shape, [part.double() for part in parts], is_interleaved)
    for ours, expected in zip(found, exact, strict=True):
        assert ours.shape == expected.shape
        assert float((ours.double() - expected).norm() / expected.norm()) < CLOSE


def test_every_number_of_threads_gives_the_same_bits(kernels: NativeKernels) -> None:
    parts, found = draw(SHAPES[1]), []
    for number in (1, 2, 3):
        with threads(number):
            found.append(run(kernels, SHAPES[1], parts))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_the_future_changes_nothing(kernels: NativeKernels) -> None:
    parts = draw(SHAPES[0])
    changed = [part.clone() for part in parts]
    for part in (changed[0], changed[1], changed[4]):
        part[:, 40:] += 1
    first, second = (run(kernels, SHAPES[0], each)[0] for each in (parts, changed))
    assert torch.equal(first[:, :40], second[:, :40])
    assert not torch.equal(first[:, 40:], second[:, 40:])


def test_parts_of_larger_arrays_are_taken(kernels: NativeKernels) -> None:
    parts = draw(SHAPES[0])
    wide = [torch.cat([part, part], dim=-1) for part in parts[:2]]
    views = [wide[0][..., :32], wide[1][..., :64], *parts[2:]]
    out = attend_natively(kernels, project(SHAPES[0], views, True), parts[3])
    assert torch.equal(out, run(kernels, SHAPES[0], parts)[0])


def test_latents_whose_product_the_kernels_do_not_take_go_through_torch(
    kernels: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = draw(SHAPES[0])
    native = run(kernels, SHAPES[0], parts)
    monkeypatch.setattr(kernels, "takes_product", lambda weight_ND: False)
    for mixed, expected in zip(run(kernels, SHAPES[0], parts), native, strict=True):
        assert float((mixed.double() - expected).norm() / expected.double().norm()) < CLOSE


def test_only_what_the_kernels_take_goes_to_them() -> None:
    parts = draw(SHAPES[0])

    def takes(parts: list[Tensor], shape: Shape = SHAPES[0]) -> bool:
        return causal_kernels(project(shape, parts, True), parts[3]) is not None

    assert takes(parts)
    assert not takes([part.float() for part in parts])
    assert not takes([parts[0][:, :33], parts[1][:, :33], *parts[2:]], (2, 33, *SHAPES[0][2:]))
    # Values of 24 numbers, and latents of 40.
    assert not takes([*parts[:3], parts[3][:, :40]])
    assert not takes([*parts[:3], parts[3][..., :40]])
