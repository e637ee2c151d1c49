"""Linear layers in training: one native call forward, one for the gradients of rows and matrix.

The twin is torch's own product. Next: rowwise.py, native/products_training.h.

Shapes: T rows, D inputs, N outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.native import NativeKernels, plain


def linear(x: Tensor, weight_ND: Tensor) -> Tensor:
    """Return x W^T over the last dimension of `x`, differentiable in both; they have one dtype."""
    kernels = product_kernels(x, weight_ND)
    if kernels is None:
        return F.linear(x, weight_ND)
    out: Tensor = _Product.apply(kernels, x, weight_ND)
    return out


def product_kernels(x: Tensor, weight_ND: Tensor) -> NativeKernels | None:
    """Return the native kernels if they take rows and a matrix like these."""
    kernels = native_for(x, torch.bfloat16, find_fault)
    return kernels if kernels is not None and kernels.takes_product(weight_ND) else None


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twin."""

    def native(x_TD: Tensor, weight_ND: Tensor) -> Tensor:
        out_TN: Tensor = _Product.apply(kernels, x_TD, weight_ND)
        return out_TN

    return compare("a linear layer", native, F.linear, [draw(70, 64), draw(96, 64, seed=1)])


def forward(kernels: NativeKernels, x_TD: Tensor, weight_ND: Tensor) -> Tensor:
    """Return y_TN, natively where the kernels take the matrix."""
    if kernels.takes_product(weight_ND):
        return _forward(kernels, x_TD, weight_ND)
    return x_TD @ weight_ND.T


def backward(
    kernels: NativeKernels, x_TD: Tensor, weight_ND: Tensor, dy_TN: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows and matrix likewise."""
    if kernels.takes_product(weight_ND):
        return _backward(kernels, x_TD, weight_ND, dy_TN)
    return dy_TN @ weight_ND, dy_TN.T @ x_TD


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: NativeKernels, x: Tensor, weight_ND: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1]).contiguous()
        ctx.kernels, ctx.shape = kernels, x.shape
        ctx.save_for_backward(x_TD, weight_ND)
        return _forward(kernels, x_TD, weight_ND).view(*x.shape[:-1], len(weight_ND))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_ND = ctx.saved_tensors
        dy_TN = grads[0].reshape(-1, len(weight_ND)).contiguous()
        dx_TD, dweight_ND = _backward(ctx.kernels, x_TD, weight_ND, dy_TN)
        return None, dx_TD.view(ctx.shape), dweight_ND


def _forward(kernels: NativeKernels, x_TD: Tensor, weight_ND: Tensor) -> Tensor:
    x_TD, weight_ND = plain(x_TD, torch.bfloat16), plain(weight_ND, torch.bfloat16)
    y_TN = x_TD.new_empty(len(x_TD), len(weight_ND))
    work = kernels.native.ProductForward(
        product=_describe(kernels, x_TD, weight_ND), y=y_TN.data_ptr()
    )
    kernels.library.forward_product(work, torch.get_num_threads())
    return y_TN


def _backward(
    kernels: NativeKernels, x_TD: Tensor, weight_ND: Tensor, dy_TN: Tensor
) -> tuple[Tensor, Tensor]:
    x_TD, weight_ND = plain(x_TD, torch.bfloat16), plain(weight_ND, torch.bfloat16)
    dy_TN = plain(dy_TN, torch.bfloat16)
    assert dy_TN.shape == (len(x_TD), len(weight_ND))
    dx_TD, dweight_ND = torch.empty_like(x_TD), torch.empty_like(weight_ND)
    work = kernels.native.ProductBackward(
        product=_describe(kernels, x_TD, weight_ND),
        dy=dy_TN.data_ptr(),
        dx=dx_TD.data_ptr(),
        dweight=dweight_ND.data_ptr(),
    )
    kernels.library.backward_product(work, torch.get_num_threads())
    return dx_TD, dweight_ND


def _describe(kernels: NativeKernels, x_TD: Tensor, weight_ND: Tensor) -> Any:
    (T, D), N = x_TD.shape, len(weight_ND)
    assert weight_ND.shape == (N, D)
    assert kernels.takes_product(weight_ND)
    return kernels.native.TrainedProduct(
        x=x_TD.data_ptr(), weight=weight_ND.data_ptr(), num_rows=T, width=D, num_outputs=N
    )
