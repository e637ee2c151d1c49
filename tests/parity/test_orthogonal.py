"""Native orthogonalization equals torch's, whatever the instruction set, the shape and the threads.

Shapes: N stacked matrices, R rows, C columns.
"""

import pytest
import torch
from torch import Tensor

from moestro.ops.kernels import TorchKernels
from moestro.ops.native import NativeKernels, load_native
from moestro.ops.orthogonal import orthogonalize
from tests.parity.chosen import use
from tests.parity.threads import threads

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
SHAPES = [
    (8, 64, 96),
    (4, 96, 64),
    (3, 32, 32),
    (5, 37, 51),
    (2, 1, 40),
    (3, 144, 48),
    (2, 150, 170),
]


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NativeKernels:
    native = NativeKernels(request.param, load_native())
    use(native, monkeypatch)
    return native


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_as_near_to_exact_arithmetic_as_torch(
    shape: tuple[int, int, int], kernels: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_NRC = draw(*shape)
    found = orthogonalize(update_NRC, 5)
    use(TorchKernels(), monkeypatch)
    exact, rounded = orthogonalize(update_NRC.float(), 5), orthogonalize(update_NRC, 5)
    assert (found.dtype, found.shape) == (torch.bfloat16, update_NRC.shape)
    assert float((found - exact).norm()) < 1.1 * float((rounded - exact).norm())


def test_a_matrix_gets_the_same_bits_in_any_company_and_with_any_threads(
    kernels: NativeKernels,
) -> None:
    update_NRC = draw(5, 40, 72)
    alone = torch.cat([orthogonalize(part, 5) for part in update_NRC.split(1)])
    for number in (1, 2, 3):
        with threads(number):
            assert torch.equal(orthogonalize(update_NRC, 5), alone)


def test_zeros_stay_zero_and_turned_matrices_give_turned_results(kernels: NativeKernels) -> None:
    assert not orthogonalize(torch.zeros(2, 33, 20, dtype=torch.bfloat16), 5).any()
    update_NRC = draw(2, 33, 70)
    turned = orthogonalize(update_NRC.mT.contiguous(), 5).mT
    assert torch.equal(turned, orthogonalize(update_NRC, 5))
