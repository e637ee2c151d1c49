"""Experts in training: the native kernels where they serve, torch's products elsewhere.

The twin is `grouped.apply_experts`. Native passes take bfloat16 and give every sum one order, so
that no result depends on threads. Next: grouped.py, native/experts_training.h.

Shapes: T tokens, K slots per token, D width, E experts, F expert width, P pairs in use, G = 2F.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.grouped import apply_experts, sort_pairs
from moestro.ops.kernels import Visits
from moestro.ops.native import WIDTH_MULTIPLE, NativeKernels


def visit_experts(
    x_TD: Tensor, visits: Visits, gate_up_EGD: Tensor, down_EDF: Tensor, row_multiple: int = 1
) -> Tensor:
    """Return sum over a token's slots of weight * expert(x), with G = 2F rows: gate first, then up.

    Differentiable in `x_TD`, the visits' weights and both matrices, which have the dtype of `x_TD`.
    """
    kernels = native_kernels(x_TD, down_EDF)
    if kernels is not None:
        return visit_natively(kernels, x_TD, visits, gate_up_EGD, down_EDF)
    pairs = sort_pairs(visits.experts_TK, visits.is_used_TK, len(down_EDF), row_multiple)
    return apply_experts(x_TD, visits.weights_TK.to(x_TD.dtype), pairs, gate_up_EGD, down_EDF)


def feed_forward(x_TD: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
    """Return down(silu(gate(x)) * up(x)): one expert that every token visits."""
    kernels = native_kernels(x_TD, down_DF)
    if kernels is None:
        gate, up = F.linear(x_TD, gate_up_GD).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down_DF)
    weights_T1 = torch.ones(len(x_TD), 1)
    everyone = Visits(torch.zeros(len(x_TD), 1, dtype=torch.int64), weights_T1, weights_T1.bool())
    return visit_natively(kernels, x_TD, everyone, gate_up_GD[None], down_DF[None])


def native_kernels(x_TD: Tensor, down: Tensor) -> NativeKernels | None:
    """Return the native kernels if they take matrices of this shape (..., D, F), else None."""
    is_whole = all(width % WIDTH_MULTIPLE == 0 for width in down.shape[-2:])
    return native_for(x_TD, torch.bfloat16) if is_whole else None


def visit_natively(
    kernels: NativeKernels, x_TD: Tensor, visits: Visits, gate_up_EGD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Do it in one native call each way."""
    out_TD: Tensor = _Experts.apply(kernels, x_TD, visits.weights_TK, visits, gate_up_EGD, down_EDF)
    return out_TD


class _Experts(torch.autograd.Function):
    """Beside the visits stand their weights, which have gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: NativeKernels,
        x_TD: Tensor,
        weights_TK: Tensor,
        visits: Visits,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
    ) -> Tensor:
        out_TD, hidden_PG = kernels.forward_experts(x_TD, visits, gate_up_EGD, down_EDF)
        ctx.kernels, ctx.visits = kernels, visits
        ctx.save_for_backward(x_TD, hidden_PG, gate_up_EGD, down_EDF)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, hidden_PG, gate_up_EGD, down_EDF = ctx.saved_tensors
        dx_TD, dweights_TK, dgate_up_EGD, ddown_EDF = ctx.kernels.backward_experts(
            grads[0], x_TD, hidden_PG, ctx.visits, gate_up_EGD, down_EDF
        )
        return None, dx_TD, dweights_TK, None, dgate_up_EGD, ddown_EDF
