"""What training does with each row by itself, in one native call each way: norms and rotations.

bfloat16 on CPUs; all else goes through torch, the specification. Next: rope.py,
native/norm_training.h, native/rotate_training.h.

Shapes: T rows, D width, S tokens, H heads, R rotary width, P = R / 2 pairs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.native import NativeKernels, address_of
from moestro.ops.panels import PANEL


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return weight * x / root(mean(x^2) + eps) over the last dimension, in the dtype of `x`."""
    kernels = native_for(x, torch.bfloat16, find_fault)
    if kernels is not None and x.shape[-1] % PANEL == 0:
        out: Tensor = _Norm.apply(kernels, x, weight_D, eps)
        return out
    # float32: a bfloat16 mean of squares is off by up to a percent.
    return F.rms_norm(x.float(), weight_D.shape, weight_D.float(), eps).to(x.dtype)


def add_norm(x: Tensor, more: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + more, and the norm of that sum."""
    kernels = native_for(x, torch.bfloat16, find_fault)
    if kernels is not None and x.shape[-1] % PANEL == 0:
        sums, normed = _AddNorm.apply(kernels, x, more, weight_D, eps)
        return sums, normed
    sums = x + more
    return sums, rms_norm(sums, weight_D, eps)


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twins."""
    weight_D = draw(48, seed=2, dtype=torch.float32)

    def norm(x_TD: Tensor, weight_D: Tensor) -> Tensor:
        out_TD: Tensor = _Norm.apply(kernels, x_TD, weight_D, 1e-6)
        return out_TD

    def norm_twin(x_TD: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_TD, weight_D.shape, weight_D, 1e-6)

    def add(x_TD: Tensor, more_TD: Tensor, weight_D: Tensor) -> tuple[Tensor, ...]:
        both: tuple[Tensor, ...] = _AddNorm.apply(kernels, x_TD, more_TD, weight_D, 1e-6)
        return both

    def add_twin(x_TD: Tensor, more_TD: Tensor, weight_D: Tensor) -> tuple[Tensor, ...]:
        return x_TD + more_TD, norm_twin(x_TD + more_TD, weight_D)

    x_TD, more_TD = draw(70, 48), draw(70, 48, seed=1)
    return compare("a norm", norm, norm_twin, [x_TD, weight_D]) or compare(
        "a norm of a sum", add, add_twin, [x_TD, more_TD, weight_D]
    )


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
        normalize(kernels, norm_rows(kernels, x_TD, weight_D, eps), out)
        ctx.kernels, ctx.eps = kernels, eps
        ctx.save_for_backward(x_TD, weight_D)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight_D = _norm_backward(ctx, grads[0], None)
        return None, dx, dweight_D, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: NativeKernels, x: Tensor, more: Tensor, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        x_TD, more, weight_D = _rows(x), more.contiguous(), weight_D.float().contiguous()
        assert more.shape == x.shape
        assert more.dtype == torch.bfloat16
        sums, normed = torch.empty_like(more), torch.empty_like(more)
        work = kernels.native.NormForward(
            norm=norm_rows(kernels, x_TD, weight_D, eps),
            more=more.data_ptr(),
            sum=sums.data_ptr(),
            y=normed.data_ptr(),
        )
        kernels.library.forward_norm(work, torch.get_num_threads())
        ctx.kernels, ctx.eps = kernels, eps
        ctx.save_for_backward(_rows(sums), weight_D)
        return sums, normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dsums, dnormed = grads
        dx, dweight_D = _norm_backward(ctx, dnormed, dsums.to(torch.bfloat16).contiguous())
        return None, dx, dx, dweight_D, None


def _norm_backward(ctx: Any, dnormed: Tensor, drows: Tensor | None) -> tuple[Tensor, Tensor]:
    x_TD, weight_D = ctx.saved_tensors
    dnormed = dnormed.to(torch.bfloat16).contiguous()
    dx, dweight_D = torch.empty_like(dnormed), torch.empty_like(weight_D)
    work = ctx.kernels.native.NormBackward(
        norm=norm_rows(ctx.kernels, x_TD, weight_D, ctx.eps),
        dy=dnormed.data_ptr(),
        drows=address_of(drows),
        dx=dx.data_ptr(),
        dx_step=dx.shape[-1],
        dweight=dweight_D.data_ptr(),
    )
    ctx.kernels.library.backward_norm(work, torch.get_num_threads())
    return dx, dweight_D


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
    x_BSHR = x_BSHR if _is_even(x_BSHR) else x_BSHR.contiguous()
    out_BSHR = torch.empty(B, S, H, R, dtype=torch.bfloat16)
    turn_rows(kernels, x_BSHR, *angles, out_BSHR, is_interleaved, is_inverse)
    return out_BSHR


def turn_rows(
    kernels: NativeKernels,
    x_BSHR: Tensor,
    cos_SP: Tensor,
    sin_SP: Tensor,
    out_BSHR: Tensor,
    is_interleaved: bool,
    is_inverse: bool = False,
) -> None:
    """Rotate heads' rows, or undo it, into rows that may lie in larger ones, as `x_BSHR`'s may."""
    B, S, H, R = x_BSHR.shape
    cos_SP, sin_SP = cos_SP.float().contiguous(), sin_SP.float().contiguous()
    assert cos_SP.shape == sin_SP.shape == (S, R // 2)
    assert x_BSHR.shape == out_BSHR.shape
    work = kernels.native.Rotation(
        x=head_rows(kernels, x_BSHR),
        num_rows=B * S,
        length=S,
        num_heads=H,
        num_pairs=R // 2,
        cosines=cos_SP.data_ptr(),
        sines=sin_SP.data_ptr(),
        is_interleaved=is_interleaved,
        is_inverse=is_inverse,
        y=head_rows(kernels, out_BSHR),
    )
    kernels.library.rotate(work, torch.get_num_threads())


def head_rows(kernels: NativeKernels, part_BSHW: Tensor) -> Any:
    """Describe heads' rows within larger ones to C++; the caller keeps them alive."""
    assert part_BSHW.dtype == torch.bfloat16
    assert _is_even(part_BSHW)
    # A only head serves all, as keys' positions do.
    head_step = part_BSHW.stride(2) if part_BSHW.shape[2] > 1 else 0
    return kernels.native.HeadRows(
        data=part_BSHW.data_ptr(), row_step=part_BSHW.stride(1), head_step=head_step
    )


def norm_rows(kernels: NativeKernels, x_TD: Tensor, weight_D: Tensor, eps: float) -> Any:
    """Describe rows, whose first D numbers are normalized, to C++; the caller keeps them alive."""
    D = len(weight_D)
    assert x_TD.dtype == torch.bfloat16
    assert x_TD.stride(1) == 1
    assert x_TD.shape[1] >= D
    assert D % PANEL == 0
    assert weight_D.dtype == torch.float32
    assert weight_D.is_contiguous()
    return kernels.native.NormRows(
        x=x_TD.data_ptr(),
        step=x_TD.stride(0),
        num_rows=len(x_TD),
        width=D,
        weight=weight_D.data_ptr(),
        epsilon=eps,
    )


def normalize(kernels: NativeKernels, rows: Any, out: Tensor) -> None:
    """Write the norm of rows that `norm_rows` describes, one behind the other."""
    work = kernels.native.NormForward(norm=rows, more=0, sum=0, y=out.data_ptr())
    kernels.library.forward_norm(work, torch.get_num_threads())


def _is_even(x_BSHR: Tensor) -> bool:
    """Whether rows are whole, and all tokens' equally far apart."""
    B, S = x_BSHR.shape[:2]
    return x_BSHR.stride(-1) == 1 and (B == 1 or x_BSHR.stride(0) == S * x_BSHR.stride(1))


def _rows(x: Tensor) -> Tensor:
    x_TD = x.reshape(-1, x.shape[-1])
    return x_TD if x_TD.stride(-1) == 1 else x_TD.contiguous()
