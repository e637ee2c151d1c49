"""Head and cross-entropy in one, chunk by chunk: no (tokens, vocabulary) array is ever held.

`linear_cross_entropy` is the fast path; `logits` followed by torch's own loss is its specification.
Knows rows and targets, not models. Next: train/loss.py.

Shapes: T tokens, D width, V vocabulary, N tokens of one chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.native import WIDTH_MULTIPLE, NativeKernels, plain
from moestro.ops.products import linear

CHUNK_TOKENS = 512
# Softmax goes through float32 in pieces that stay in the processor's cache.
_PIECE_ELEMENTS = 1 << 19


def linear_cross_entropy(
    x_TD: Tensor, head_VD: Tensor, targets_T: Tensor, weights_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Return sum(weights * nats), differentiable in `x_TD` and `head_VD`, and constant `nats_T`.

    The gradients are computed on the way forward, while a chunk's probabilities are at hand.
    """
    loss, nats_T = _LinearCrossEntropy.apply(x_TD, head_VD, targets_T, weights_T)
    return loss, nats_T


def linear_nats(x_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    """Return each target's negative log-probability, float32, without gradients."""
    chunks = zip(x_TD.split(CHUNK_TOKENS), targets_T.split(CHUNK_TOKENS), strict=True)
    with torch.no_grad():
        return torch.cat(
            [F.cross_entropy(linear(x, head_VD).float(), y, reduction="none") for x, y in chunks]
        )


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twin, which gives gradients on the way forward as well."""
    T, D, V = 70, 64, 96
    targets_T, weights_T = torch.arange(T) * 7 % V, draw(T, dtype=torch.float32)

    def native(x_TD: Tensor, head_VD: Tensor) -> tuple[Tensor, ...]:
        return differentiate_natively(
            kernels, x_TD.detach(), head_VD.detach(), targets_T, weights_T
        )

    def twin(x_TD: Tensor, head_VD: Tensor) -> tuple[Tensor, ...]:
        return _differentiate(x_TD.detach(), head_VD.detach(), targets_T, weights_T)

    return compare("the head's loss", native, twin, [draw(T, D), draw(V, D, seed=1, scale=0.3)])


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, head_VD: Tensor, targets_T: Tensor, weights_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        kernels = native_for(x_TD, torch.bfloat16, find_fault)
        is_whole = all(number % WIDTH_MULTIPLE == 0 for number in head_VD.shape)
        rows = x_TD, head_VD, targets_T, weights_T
        if kernels is not None and is_whole:
            nats_T, dx_TD, dhead_VD = differentiate_natively(kernels, *rows)
        else:
            nats_T, dx_TD, dhead_VD = _differentiate(*rows)
        ctx.save_for_backward(dx_TD, dhead_VD)
        ctx.mark_non_differentiable(nats_T)
        return (nats_T * weights_T).sum(), nats_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dhead_VD = ctx.saved_tensors
        # Both without a pass over either where nothing scales the loss, as is most common.
        if grads[0] != 1:
            dx_TD, dhead_VD = dx_TD * grads[0].to(dx_TD.dtype), dhead_VD * grads[0]
        return dx_TD, dhead_VD.to(dx_TD.dtype), None, None


def differentiate_natively(
    kernels: NativeKernels, x_TD: Tensor, head_VD: Tensor, targets_T: Tensor, weights_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return nats_T and the gradients of sum(weights * nats): dx_TD, and dhead_VD in float32.

    Rows and head are bfloat16; IndexError tells of a target beyond the vocabulary.
    """
    x_TD, head_VD = plain(x_TD, torch.bfloat16), plain(head_VD, torch.bfloat16)
    targets_T, weights_T = plain(targets_T, torch.int64), plain(weights_T, torch.float32)
    (T, D), V = x_TD.shape, len(head_VD)
    assert head_VD.shape == (V, D)
    assert targets_T.shape == weights_T.shape == (T,)
    assert D % WIDTH_MULTIPLE == 0 == V % WIDTH_MULTIPLE
    nats_T, dx_TD, dhead_VD = torch.empty(T), torch.empty_like(x_TD), torch.empty(V, D)
    work = kernels.native.LossRows(
        x=x_TD.data_ptr(),
        head=head_VD.data_ptr(),
        targets=targets_T.data_ptr(),
        weights=weights_T.data_ptr(),
        num_rows=T,
        width=D,
        vocabulary=V,
        nats=nats_T.data_ptr(),
        dx=dx_TD.data_ptr(),
        dhead=dhead_VD.data_ptr(),
    )
    kernels.library.differentiate_loss(work, torch.get_num_threads())
    return nats_T, dx_TD, dhead_VD


def _differentiate(
    x_TD: Tensor, head_VD: Tensor, targets_T: Tensor, weights_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    T, V = x_TD.shape[0], head_VD.shape[0]
    nats_T, dx_TD = torch.empty_like(weights_T), torch.empty_like(x_TD)
    # float32: thousands of chunks' worth of small terms are summed here.
    dhead_VD = torch.zeros_like(head_VD, dtype=torch.float32)
    # One array for all chunks: fresh memory costs more than the product that fills it.
    logits_CV = x_TD.new_empty(min(T, CHUNK_TOKENS), V)
    part_VD = torch.empty_like(head_VD)
    for start in range(0, T, CHUNK_TOKENS):
        rows = slice(start, min(T, start + CHUNK_TOKENS))
        logits_NV = torch.mm(x_TD[rows], head_VD.T, out=logits_CV[: rows.stop - start])
        nats_T[rows] = _to_gradients(logits_NV, targets_T[rows])
        weight_N1 = weights_T[rows, None].to(x_TD.dtype)
        torch.mm(logits_NV, head_VD, out=dx_TD[rows]).mul_(weight_N1)
        dhead_VD += torch.mm(logits_NV.T, x_TD[rows] * weight_N1, out=part_VD)
    return nats_T, dx_TD, dhead_VD


def _to_gradients(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Turn logits into the gradients of their nats, in place, and return nats_N."""
    N, V = logits_NV.shape
    size = max(1, _PIECE_ELEMENTS // V)
    nats_N = torch.empty(N, device=logits_NV.device)
    float_MV, softmax_MV = torch.empty(2, min(size, N), V, device=logits_NV.device)
    for start in range(0, N, size):
        rows = slice(start, min(N, start + size))
        target_M1 = targets_N[rows, None]
        piece_MV = float_MV[: rows.stop - start].copy_(logits_NV[rows])
        share_MV = torch.softmax(piece_MV, dim=-1, out=softmax_MV[: rows.stop - start])
        # The largest share's logarithm gives away what the softmax divided by, without a second
        # pass of exponentials.
        total_M1 = piece_MV.amax(-1, keepdim=True) - share_MV.amax(-1, keepdim=True).log_()
        nats_N[rows] = (total_M1 - piece_MV.gather(1, target_M1))[:, 0]
        share_MV.scatter_add_(1, target_M1, share_MV.new_full(target_M1.shape, -1.0))
        logits_NV[rows] = share_MV
    return nats_N
