"""Causal attention in training, in one native call each way; knows heads, not layers.

Takes keys and values as the latents' expansion leaves them and positions' parts apart, so that
nothing is laid out anew. The twin is what `latent.naive` does without it. Next: latent.py,
native/attention_training.h.

Shapes: B sequences, S tokens, H heads, N and R query widths without and with rotary position,
V value width, E = N + V.
"""

from typing import Any

import torch
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.native import WIDTH_MULTIPLE, NativeKernels

# Panels of outputs, of which both parts of a query are made.
_PART_MULTIPLE = 16
# Scores of 64 queries of more keys than this leave a core's cache.
_MOST_TOKENS = 4096


def causal_kernels(
    nope_BSHN: Tensor, rope_BSHR: Tensor, expanded_BSHE: Tensor
) -> NativeKernels | None:
    """Return the native kernels if they take queries and as many keys of these shapes."""
    S, num_keys = nope_BSHN.shape[1], expanded_BSHE.shape[1]
    N, R = nope_BSHN.shape[-1], rope_BSHR.shape[-1]
    widths = (S, N + R, expanded_BSHE.shape[-1] - N)
    is_fitting = all(width % WIDTH_MULTIPLE == 0 for width in widths) and num_keys == S
    is_fitting = is_fitting and N % _PART_MULTIPLE == 0 and 0 < S <= _MOST_TOKENS
    return native_for(nope_BSHN, torch.bfloat16) if is_fitting else None


def attend_natively(
    kernels: NativeKernels, query: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], scale: float
) -> Tensor:
    """Return out_BSHV of queries (nope_BSHN, rope_BSHR) and keys (expanded_BSHE, rope_BSR)."""
    out_BSHV: Tensor = _Causal.apply(kernels, *query, *keys, scale)
    return out_BSHV


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: NativeKernels,
        nope_BSHN: Tensor,
        rope_BSHR: Tensor,
        expanded_BSHE: Tensor,
        rope_BSR: Tensor,
        scale: float,
    ) -> Tensor:
        inputs = [_by_heads(part) for part in (nope_BSHN, rope_BSHR, expanded_BSHE, rope_BSR)]
        B, S, H, N = inputs[0].shape
        shape = kernels.native.AttentionShape(
            B, S, H, N, rope_BSR.shape[-1], expanded_BSHE.shape[-1] - N, scale
        )
        out_BSHV = nope_BSHN.new_empty(B, S, H, expanded_BSHE.shape[-1] - N)
        log_totals_BHS = torch.empty(B, H, S)
        kernels.library.forward_attention(
            shape,
            _parts(kernels, inputs),
            _rows(kernels, out_BSHV),
            log_totals_BHS.data_ptr(),
            torch.get_num_threads(),
        )
        ctx.kernels, ctx.shape = kernels, shape
        ctx.save_for_backward(*inputs, out_BSHV, log_totals_BHS)
        return out_BSHV

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out_BSHV, log_totals_BHS = ctx.saved_tensors
        kernels = ctx.kernels
        B, S, H, _ = out_BSHV.shape
        R = inputs[3].shape[-1]
        dout_BSHV = _by_heads(grads[0])
        assert dout_BSHV.shape == out_BSHV.shape
        gradients = [
            torch.empty_like(part, memory_format=torch.contiguous_format) for part in inputs
        ]
        dropes_BHSR = torch.empty(B, H, S, R)
        kernels.library.backward_attention(
            ctx.shape,
            _parts(kernels, inputs),
            _rows(kernels, out_BSHV),
            _rows(kernels, dout_BSHV),
            log_totals_BHS.data_ptr(),
            _parts(kernels, gradients),
            dropes_BHSR.data_ptr(),
            torch.get_num_threads(),
        )
        dnope_BSHN, drope_BSHR, dexpanded_BSHE, drope_BS1R = gradients
        return None, dnope_BSHN, drope_BSHR, dexpanded_BSHE, drope_BS1R[:, :, 0], None


def _by_heads(part: Tensor) -> Tensor:
    """Give a part the shape (B, S, H, width) and sequences that follow each other in memory."""
    part = part[:, :, None] if part.dim() == 3 else part
    B, S = part.shape[:2]
    is_fitting = part.stride(-1) == 1 and (B == 1 or part.stride(0) == S * part.stride(1))
    assert part.is_cpu
    assert part.dtype == torch.bfloat16
    return part if is_fitting else part.contiguous()


def _parts(kernels: NativeKernels, inputs: list[Tensor]) -> Any:
    nope_BSHN, rope_BSHR, expanded_BSHE, rope_BS1R = inputs
    key_BSHN, value_BSHV = expanded_BSHE.tensor_split([nope_BSHN.shape[-1]], dim=-1)
    parts = (nope_BSHN, rope_BSHR, key_BSHN, rope_BS1R, value_BSHV)
    return kernels.native.AttentionParts(*(_rows(kernels, part) for part in parts))


def _rows(kernels: NativeKernels, part_BSHW: Tensor) -> Any:
    # Keys' only head of positions serves all.
    head_step = part_BSHW.stride(2) if part_BSHW.shape[2] > 1 else 0
    return kernels.native.HeadRows(part_BSHW.data_ptr(), part_BSHW.stride(1), head_step)
