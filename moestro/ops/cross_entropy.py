"""Head and cross-entropy in one, chunk by chunk: no (tokens, vocabulary) array is ever held.

`linear_cross_entropy` is the fast path; `logits` followed by torch's own loss is its specification.
Knows rows and targets, not models. Next: train/loss.py.

Shapes: T tokens, D width, V vocabulary, N tokens of one chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_TOKENS = 1024


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
            [F.cross_entropy((x @ head_VD.T).float(), y, reduction="none") for x, y in chunks]
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, head_VD: Tensor, targets_T: Tensor, weights_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        nats_T = torch.empty_like(weights_T)
        dx_TD = torch.empty_like(x_TD)
        # float32: thousands of chunks' worth of small terms are summed here.
        dhead_VD = torch.zeros_like(head_VD, dtype=torch.float32)
        for start in range(0, x_TD.shape[0], CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            logits_NV = (x_TD[rows] @ head_VD.T).float()
            target_N1 = targets_T[rows, None]
            total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
            nats_T[rows] = (total_N1 - logits_NV.gather(1, target_N1))[:, 0]
            weight_N1 = weights_T[rows, None]
            dlogits_NV = logits_NV.sub_(total_N1).exp_().mul_(weight_N1)
            dlogits_NV.scatter_add_(1, target_N1, -weight_N1)
            dlogits_NV = dlogits_NV.to(x_TD.dtype)
            torch.mm(dlogits_NV, head_VD, out=dx_TD[rows])
            dhead_VD += dlogits_NV.T @ x_TD[rows]
        ctx.save_for_backward(dx_TD, dhead_VD.to(head_VD.dtype))
        ctx.mark_non_differentiable(nats_T)
        return (nats_T * weights_T).sum(), nats_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dhead_VD = ctx.saved_tensors
        return dx_TD * grads[0].to(dx_TD.dtype), dhead_VD * grads[0].to(dhead_VD.dtype), None, None
