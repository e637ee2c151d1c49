"""Native norms, rotations and losses equal torch's, values and gradients, whatever the threads.

Shapes: B sequences, S tokens, H heads, D width, N rows, V vocabulary, R rotary width, P = R / 2.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops import rope
from moestro.ops.cross_entropy import differentiate_natively, linear_cross_entropy
from moestro.ops.kernels import TorchKernels
from moestro.ops.native import NativeKernels, load_native
from moestro.ops.rowwise import add_norm, rms_norm
from tests.parity.chosen import use
from tests.parity.threads import threads

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
# Results are rounded to bfloat16, to 1 in 512; gradients are made of such.
CLOSE = 0.01


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NativeKernels:
    native = NativeKernels(request.param, load_native())
    use(native, monkeypatch)
    return native


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def run(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return a function's value and the gradients of its inputs."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    out = function(*leaves)
    out.backward(draw(*out.shape, seed=9).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours.double() - theirs).norm() / theirs.norm()) < CLOSE


@pytest.mark.parametrize("shape", [(1, 16), (3, 50, 96), (130, 48)])
def test_norms_equal_torchs(kernels: NativeKernels, shape: tuple[int, ...]) -> None:
    x, weight_D = draw(*shape), draw(shape[-1], seed=1).float()
    expected = run(lambda x, w: F.rms_norm(x, w.shape, w, 1e-6), x.double(), weight_D.double())
    assert_close(run(lambda x, w: rms_norm(x, w, 1e-6), x, weight_D), expected)


@pytest.mark.parametrize("shape", [(1, 16), (3, 50, 96), (130, 48)])
def test_norms_of_sums_equal_torchs(kernels: NativeKernels, shape: tuple[int, ...]) -> None:
    def both(x: Tensor, more: Tensor, weight_D: Tensor) -> Tensor:
        return torch.cat(add_norm(x, more, weight_D, 1e-6))

    x, more, weight_D = draw(*shape), draw(*shape, seed=1), draw(shape[-1], seed=2).float()
    # float64 goes through torch.
    exact = run(both, x.double(), more.double(), weight_D.double())
    assert_close(run(both, x, more, weight_D), exact)


def test_a_norm_of_a_part_reads_it_where_it_lies(kernels: NativeKernels) -> None:
    x, weight_D = draw(2, 30, 64), draw(48, seed=1).float()
    found = run(lambda x: rms_norm(x.split([48, 16], dim=-1)[0], weight_D, 1e-6), x)
    expected = run(lambda x: F.rms_norm(x[..., :48], (48,), weight_D.double(), 1e-6), x.double())
    assert_close(found, expected)


@pytest.mark.parametrize("is_interleaved", [True, False])
@pytest.mark.parametrize("num_pairs", [8, 16, 24])
def test_rotations_equal_torchs(
    kernels: NativeKernels, is_interleaved: bool, num_pairs: int
) -> None:
    S, P = 70, num_pairs
    cos_SP, sin_SP = rope.angles(torch.arange(S), rope.frequencies(2 * P, 10_000.0), 1.2)

    def heads(x_BSHR: Tensor) -> Tensor:
        return rope.rotate(x_BSHR, cos_SP[:, None], sin_SP[:, None], is_interleaved)

    def shared(x_BSR: Tensor) -> Tensor:
        return rope.rotate(x_BSR, cos_SP, sin_SP, is_interleaved)

    x_BSHR = draw(2, S, 3, 2 * P)
    # float64 goes through torch.
    assert_close(run(heads, x_BSHR), run(heads, x_BSHR.double()))
    assert_close(run(shared, x_BSHR[:, :, 0]), run(shared, x_BSHR[:, :, 0].double()))


def test_losses_equal_torchs(kernels: NativeKernels) -> None:
    N, D, V = 70, 32, 144
    x_ND, head_VD = draw(N, D), draw(V, D, seed=1)
    targets_N = torch.randint(V, (N,), generator=torch.Generator().manual_seed(2))
    weights_N = torch.full((N,), 1 / N)

    def exact(x_ND: Tensor, head_VD: Tensor) -> Tensor:
        return F.cross_entropy(x_ND @ head_VD.T, targets_N)

    def ours(x_ND: Tensor, head_VD: Tensor) -> Tensor:
        return linear_cross_entropy(x_ND, head_VD, targets_N, weights_N)[0]

    assert_close(run(ours, x_ND, head_VD), run(exact, x_ND.double(), head_VD.double()))


def test_a_token_that_is_not_in_the_vocabulary_is_refused(kernels: NativeKernels) -> None:
    with pytest.raises(IndexError, match="no such token"):
        differentiate_natively(
            kernels, draw(2, 32), draw(32, 32), torch.tensor([1, 32]), torch.ones(2)
        )


def test_every_number_of_threads_gives_the_same_bits(kernels: NativeKernels) -> None:
    x, weight_D, found = draw(200, 96), draw(96, seed=1).float(), []
    for number in (1, 2, 3):
        with threads(number):
            found.append(run(lambda x, w: rms_norm(x, w, 1e-6), x, weight_D))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_without_native_kernels_torch_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight_D = draw(5, 96), draw(96, seed=1).float()
    native = rms_norm(x, weight_D, 1e-6)
    use(TorchKernels(), monkeypatch)
    torch.testing.assert_close(rms_norm(x, weight_D, 1e-6), native, rtol=1e-2, atol=1e-2)
