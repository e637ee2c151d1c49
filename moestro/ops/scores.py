"""Causal attention through whole score matrices: plain products, forward and backward.

torch's fused attention multiplies bfloat16 on CPUs at a fifth of what its plain products do; whole
matrices win until their size does (`is_cheaper`). Scores are bfloat16 before the softmax, which
itself computes in float32. Next: latent.py.

Shapes: N sequences times heads, S tokens, Q query width, V value width.
"""

from typing import Any

import torch
from torch import Tensor

_MOST_TOKENS = 512


def is_cheaper(query: Tensor, num_keys: int) -> bool:
    """Tell whether whole matrices beat the fused kernel for queries (..., S, Q) of all keys."""
    num_queries = query.shape[-2]
    is_fitting = 1 < num_queries == num_keys <= _MOST_TOKENS
    return is_fitting and query.is_cpu and query.dtype == torch.bfloat16


def attend_whole(query_NSQ: Tensor, key_NSQ: Tensor, value_NSV: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * query key^T) value, each token attending up to itself."""
    out: Tensor = _Whole.apply(query_NSQ, key_NSQ, value_NSV, scale)
    return out


class _Whole(torch.autograd.Function):
    """Autograd's own derivative would lay the scores' gradient out so that it must be copied."""

    @staticmethod
    def forward(
        ctx: Any, query_NSQ: Tensor, key_NSQ: Tensor, value_NSV: Tensor, scale: float
    ) -> Tensor:
        S = query_NSQ.shape[1]
        future_SS = query_NSQ.new_full((S, S), -torch.inf).triu(1)
        scores_NSS = torch.baddbmm(future_SS, query_NSQ, key_NSQ.mT, alpha=scale)
        weights_NSS = scores_NSS.softmax(dim=-1)
        ctx.save_for_backward(query_NSQ, key_NSQ, value_NSV, weights_NSS)
        ctx.scale = scale
        return weights_NSS @ value_NSV

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_NSQ, key_NSQ, value_NSV, weights_NSS = ctx.saved_tensors
        dout_NSV = grads[0].contiguous()
        dweights_NSS = dout_NSV @ value_NSV.mT
        # The softmax's derivative, by torch's own fused kernel.
        dscores_NSS = torch._softmax_backward_data(dweights_NSS, weights_NSS, -1, weights_NSS.dtype)
        dquery_NSQ = (dscores_NSS @ key_NSQ).mul_(ctx.scale)
        dkey_NSQ = (dscores_NSS.mT @ query_NSQ).mul_(ctx.scale)
        return dquery_NSQ, dkey_NSQ, weights_NSS.mT @ dout_NSV, None
