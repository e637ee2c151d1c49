"""A gate's logits and its best experts, in native calls on CPUs.

float32 throughout: bfloat16 scores tie and flip between near-equal experts. torch's products and
`topk` are the specification. Next: model/gate.py, native/gate_training.h.

Shapes: T tokens, D width, E experts, K slots.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.native import NativeKernels

# Numbers of a panel.
_MULTIPLE = 16
# The gradient of larger gates would fill the caches with sums of pieces.
_MOST_WEIGHTS = 1 << 16
# Beyond it a partial sort is better than going through all.
_MOST_EXPERTS = 64


def gate_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Return float32 logits_TE, differentiable in both."""
    kernels = native_for(x_TD, torch.bfloat16)
    is_fitting = weight_ED.numel() <= _MOST_WEIGHTS and x_TD.shape[1] % _MULTIPLE == 0
    if kernels is None or not is_fitting or weight_ED.dtype != torch.float32:
        return F.linear(x_TD.float(), weight_ED.float())
    logits_TE: Tensor = _Logits.apply(kernels, x_TD, weight_ED)
    return logits_TE


def take_largest(scores_TE: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Return the K largest of each row, the largest first, and their columns; no gradients."""
    kernels = native_for(scores_TE, torch.float32)
    if kernels is None or scores_TE.shape[1] > _MOST_EXPERTS:
        ranked_TK, experts_TK = scores_TE.topk(num_slots, dim=-1)
        return ranked_TK, experts_TK
    T, E = scores_TE.shape
    scores_TE = scores_TE.contiguous()
    ranked_TK = torch.empty(T, num_slots)
    experts_TK = torch.empty(T, num_slots, dtype=torch.int64)
    kernels.library.take_largest(
        scores_TE.data_ptr(),
        T,
        E,
        num_slots,
        ranked_TK.data_ptr(),
        experts_TK.data_ptr(),
        torch.get_num_threads(),
    )
    return ranked_TK, experts_TK


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: NativeKernels, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        x_TD, weight_ED = x_TD.contiguous(), weight_ED.contiguous()
        logits_TE = torch.empty(len(x_TD), len(weight_ED))
        kernels.library.forward_gate(
            _rows(kernels, x_TD, weight_ED), logits_TE.data_ptr(), torch.get_num_threads()
        )
        ctx.kernels = kernels
        ctx.save_for_backward(x_TD, weight_ED)
        return logits_TE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_ED = ctx.saved_tensors
        dlogits_TE = grads[0].float().contiguous()
        dx_TD, dweight_ED = torch.empty_like(x_TD), torch.empty_like(weight_ED)
        ctx.kernels.library.backward_gate(
            _rows(ctx.kernels, x_TD, weight_ED),
            dlogits_TE.data_ptr(),
            dx_TD.data_ptr(),
            dweight_ED.data_ptr(),
            torch.get_num_threads(),
        )
        return None, dx_TD, dweight_ED


def _rows(kernels: NativeKernels, x_TD: Tensor, weight_ED: Tensor) -> Any:
    T, D = x_TD.shape
    E = len(weight_ED)
    assert weight_ED.shape == (E, D)
    return kernels.native.GateRows(x_TD.data_ptr(), T, D, weight_ED.data_ptr(), E)
