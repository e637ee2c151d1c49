"""What training does with each row by itself, in one native call each way: norms and rotations.

bfloat16 on CPUs; all else goes through torch, the specification. Next: rope.py,
native/rows_training.h.

Shapes: T rows, D width, S tokens, H heads, R rotary width, P = R / 2 pairs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.native import NativeKernels

# Numbers of a panel.
_MULTIPLE = 16


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return weight * x / root(mean(x^2) + eps) over the last dimension, in the dtype of `x`."""
    kernels = native_for(x, torch.bfloat16)
    if kernels is not None and x.shape[-1] % _MULTIPLE == 0:
        out: Tensor = _Norm.apply(kernels, x, weight_D, eps)
        return out
    # float32: a bfloat16 mean of squares is off by up to a percent.
    return F.rms_norm(x.float(), weight_D.shape, weight_D.float(), eps).to(x.dtype)


def rotate_heads(
    kernels: NativeKernels, x_BSHR: Tensor, cos_SP: Tensor, sin_SP: Tensor, is_interleaved: bool
) -> Tensor:
    """Rotate each head's pairs by its token's angles; the result has first halves, then second."""
    out: Tensor = _Rotation.apply(kernels, x_BSHR, cos_SP, sin_SP, is_interleaved)
    return out


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: NativeKernels, x: Tensor, weight_D: Tensor, eps: float
    ) -> Tensor:
        x_TD, weight_D = _rows(x), weight_D.float().contiguous()
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        kernels.library.forward_norm(
            _norm_rows(kernels, x_TD, weight_D, eps), out.data_ptr(), torch.get_num_threads()
        )
        ctx.kernels, ctx.eps = kernels, eps
        ctx.save_for_backward(x_TD, weight_D)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_D = ctx.saved_tensors
        dout = grads[0].to(torch.bfloat16).contiguous()
        dx, dweight_D = torch.empty_like(dout), torch.empty_like(weight_D)
        ctx.kernels.library.backward_norm(
            _norm_rows(ctx.kernels, x_TD, weight_D, ctx.eps),
            dout.data_ptr(),
            dx.data_ptr(),
            dweight_D.data_ptr(),
            torch.get_num_threads(),
        )
        return None, dx, dweight_D, None


class _Rotation(torch.autograd.Function):
    """Its derivative is the inverse rotation."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: NativeKernels,
        x_BSHR: Tensor,
        cos_SP: Tensor,
        sin_SP: Tensor,
        is_interleaved: bool,
    ) -> Tensor:
        ctx.kernels, ctx.is_interleaved = kernels, is_interleaved
        ctx.save_for_backward(cos_SP, sin_SP)
        return _rotate(kernels, x_BSHR, (cos_SP, sin_SP), is_interleaved, is_inverse=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx_BSHR = _rotate(
            ctx.kernels, grads[0], ctx.saved_tensors, ctx.is_interleaved, is_inverse=True
        )
        return None, dx_BSHR, None, None, None


def _rotate(
    kernels: NativeKernels,
    x_BSHR: Tensor,
    angles: tuple[Tensor, Tensor],
    is_interleaved: bool,
    is_inverse: bool,
) -> Tensor:
    B, S, H, R = x_BSHR.shape
    x_THR = x_BSHR.reshape(B * S, H, R)
    x_THR = x_THR if x_THR.stride(-1) == 1 else x_THR.contiguous()
    cos_SP, sin_SP = (angle.float().contiguous() for angle in angles)
    assert x_THR.dtype == torch.bfloat16
    assert cos_SP.shape == sin_SP.shape == (S, R // 2)
    out_BSHR = torch.empty(B, S, H, R, dtype=torch.bfloat16)
    kernels.library.rotate(
        kernels.native.HeadRows(x_THR.data_ptr(), x_THR.stride(0), x_THR.stride(1)),
        B * S,
        S,
        H,
        R // 2,
        cos_SP.data_ptr(),
        sin_SP.data_ptr(),
        is_interleaved,
        is_inverse,
        out_BSHR.data_ptr(),
        torch.get_num_threads(),
    )
    return out_BSHR


def _rows(x: Tensor) -> Tensor:
    x_TD = x.reshape(-1, x.shape[-1])
    return x_TD if x_TD.stride(-1) == 1 else x_TD.contiguous()


def _norm_rows(kernels: NativeKernels, x_TD: Tensor, weight_D: Tensor, eps: float) -> Any:
    T, D = x_TD.shape
    assert weight_D.shape == (D,)
    return kernels.native.NormRows(x_TD.data_ptr(), x_TD.stride(0), T, D, weight_D.data_ptr(), eps)
