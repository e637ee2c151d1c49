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
from moestro.ops.native import NativeKernels


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
        return kernels.forward_product(x_TD, weight_ND)
    return x_TD @ weight_ND.T


def backward(
    kernels: NativeKernels, x_TD: Tensor, weight_ND: Tensor, dy_TN: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows and matrix likewise."""
    if kernels.takes_product(weight_ND):
        return kernels.backward_product(x_TD, weight_ND, dy_TN)
    return dy_TN @ weight_ND, dy_TN.T @ x_TD


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: NativeKernels, x: Tensor, weight_ND: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1]).contiguous()
        ctx.kernels, ctx.shape = kernels, x.shape
        ctx.save_for_backward(x_TD, weight_ND)
        return kernels.forward_product(x_TD, weight_ND).view(*x.shape[:-1], len(weight_ND))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_ND = ctx.saved_tensors
        dy_TN = grads[0].reshape(-1, len(weight_ND)).contiguous()
        dx_TD, dweight_ND = ctx.kernels.backward_product(x_TD, weight_ND, dy_TN)
        return None, dx_TD.view(ctx.shape), dweight_ND
