"""The fused head and loss equals torch's cross-entropy over whole logits, at every chunk border.

Shapes: T tokens, D width, V vocabulary.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.cross_entropy import CHUNK_TOKENS, linear_cross_entropy, linear_nats

D, V = 5, 23
LENGTHS = [1, 2, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS + 3]


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_values_and_gradients_equal_those_of_torch(num_tokens: int) -> None:
    x_TD, head_VD, targets_T, weights_T = inputs(num_tokens)
    loss, nats_T = linear_cross_entropy(x_TD, head_VD, targets_T, weights_T)
    (3 * loss).backward()
    ours = [x_TD.grad, head_VD.grad]
    x_TD.grad = head_VD.grad = None
    expected_T = F.cross_entropy(x_TD @ head_VD.T, targets_T, reduction="none")
    expected = (expected_T * weights_T).sum()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nats_T, expected_T.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[0], x_TD.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours[1], head_VD.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_nats_alone_equal_those_of_torch(num_tokens: int) -> None:
    x_TD, head_VD, targets_T, _ = inputs(num_tokens)
    nats_T = linear_nats(x_TD, head_VD, targets_T)
    assert nats_T.dtype == torch.float32
    assert not nats_T.requires_grad
    expected_T = F.cross_entropy(x_TD @ head_VD.T, targets_T, reduction="none").detach()
    torch.testing.assert_close(nats_T, expected_T, atol=1e-5, rtol=1e-5)


def test_a_token_without_weight_teaches_nothing() -> None:
    x_TD, head_VD, targets_T, weights_T = inputs(6)
    weights_T[2] = 0
    loss, nats_T = linear_cross_entropy(x_TD, head_VD, targets_T, weights_T)
    loss.backward()
    assert x_TD.grad is not None
    assert not x_TD.grad[2].any()
    assert nats_T[2] > 0


def test_a_logit_of_a_thousand_does_not_overflow() -> None:
    x_TD, head_VD, targets_T, weights_T = inputs(4)
    loss, nats_T = linear_cross_entropy(x_TD * 1000, head_VD, targets_T, weights_T)
    loss.backward()
    assert bool(nats_T.isfinite().all())
    assert x_TD.grad is not None
    assert bool(x_TD.grad.isfinite().all())


def test_bfloat16_rows_give_losses_close_to_float32() -> None:
    x_TD, head_VD, targets_T, weights_T = inputs(300)
    exact, _ = linear_cross_entropy(x_TD, head_VD, targets_T, weights_T)
    close, nats_T = linear_cross_entropy(x_TD.bfloat16(), head_VD.bfloat16(), targets_T, weights_T)
    close.backward()
    assert nats_T.dtype == torch.float32
    torch.testing.assert_close(close, exact, rtol=1e-2, atol=1e-2)


def inputs(num_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    x_TD = torch.randn(num_tokens, D, generator=generator).requires_grad_()
    head_VD = torch.randn(V, D, generator=generator).requires_grad_()
    targets_T = torch.randint(V, (num_tokens,), generator=generator)
    return x_TD, head_VD, targets_T, torch.rand(num_tokens, generator=generator)
