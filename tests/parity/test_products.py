"""Native linear layers in training equal torch's, values and gradients, whatever the threads.

Shapes: B sequences, S tokens, D inputs, N outputs.
"""

import pytest
import torch
from torch import Tensor

from moestro.ops.native import NativeKernels, load_native
from moestro.ops.products import linear, product_kernels
from tests.parity.chosen import use
from tests.parity.threads import threads

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
# Results are rounded to bfloat16, to 1 in 512; gradients are made of such.
CLOSE = 0.01
# B, S, D, N: less than a block of rows, several, and widths that are no whole bands.
SHAPES = [(1, 1, 32, 32), (2, 100, 96, 64), (1, 64, 64, 160), (3, 47, 32, 224)]


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NativeKernels:
    native = NativeKernels(request.param, load_native())
    use(native, monkeypatch)
    return native


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def run(x_BSD: Tensor, weight_ND: Tensor) -> list[Tensor]:
    """Return the product and the gradients of both."""
    leaves = [each.clone().requires_grad_() for each in (x_BSD, weight_ND)]
    out_BSN = linear(leaves[0], leaves[1])
    out_BSN.backward(draw(*out_BSN.shape, seed=2).to(out_BSN.dtype))
    return [out_BSN.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", SHAPES)
def test_products_equal_torchs(kernels: NativeKernels, shape: tuple[int, ...]) -> None:
    B, S, D, N = shape
    x_BSD, weight_ND = draw(B, S, D, seed=0), draw(N, D, seed=1)
    assert product_kernels(x_BSD, weight_ND) is kernels
    # float64 goes through torch.
    exact = run(x_BSD.double(), weight_ND.double())
    for found, expected in zip(run(x_BSD, weight_ND), exact, strict=True):
        assert found.shape == expected.shape
        assert float((found.double() - expected).norm() / expected.norm()) < CLOSE


def test_widths_of_single_panels_are_taken_where_no_tiles_multiply(
    kernels: NativeKernels,
) -> None:
    x_BSD, weight_ND = draw(2, 70, 48, seed=0), draw(144, 48, seed=1)
    assert (product_kernels(x_BSD, weight_ND) is None) == (kernels.name == "amx")
    exact = run(x_BSD.double(), weight_ND.double())
    for found, expected in zip(run(x_BSD, weight_ND), exact, strict=True):
        assert float((found.double() - expected).norm() / expected.norm()) < CLOSE


def test_a_row_has_the_same_bits_in_any_company(kernels: NativeKernels) -> None:
    x_BSD, weight_ND = draw(1, 200, 96, seed=0), draw(64, 96, seed=1)
    whole = linear(x_BSD, weight_ND)
    assert torch.equal(linear(x_BSD[:, 70:73], weight_ND), whole[:, 70:73])


def test_every_number_of_threads_gives_the_same_bits(kernels: NativeKernels) -> None:
    found = []
    for number in (1, 2, 3):
        with threads(number):
            found.append(run(draw(1, 300, 96, seed=0), draw(64, 96, seed=1)))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_other_widths_and_dtypes_go_through_torch(kernels: NativeKernels) -> None:
    x_SD, weight_ND = draw(5, 40, seed=0), draw(32, 40, seed=1)
    assert product_kernels(x_SD, weight_ND) is None
    assert product_kernels(draw(5, 32, seed=0).float(), draw(32, 32, seed=1)) is None
    torch.testing.assert_close(linear(x_SD, weight_ND), x_SD @ weight_ND.T)
