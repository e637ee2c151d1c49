"""Matrices made nearly orthogonal, as Muon's updates are: natively on CPUs, a matrix to a thread.

torch's products are the specification. Next: train/muon.py, native/orthogonalize.h.

Shapes: N stacked matrices, R rows, C columns.
"""

import torch
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.native import NativeKernels

# The quintic of Muon's reference: steep at zero, so that five steps lift singular values of 0.01 to
# about 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
# Larger ones leave a core's cache; torch shares one among all cores, if it can multiply bfloat16.
_MOST_NUMBERS = 1 << 18


def orthogonalize(update_NRC: Tensor, num_steps: int) -> Tensor:
    """Return roughly U V^T of each matrix's singular value decomposition, in its dtype.

    By Newton-Schulz, `num_steps` of x := a x + b (x x^T) x + c (x x^T)^2 x from x = update / norm.
    """
    _, R, C = update_NRC.shape
    kernels = native_for(update_NRC, torch.bfloat16, find_fault)
    if kernels is None or (R * C > _MOST_NUMBERS and kernels.has_bfloat16_products):
        return _by_torch(update_NRC, num_steps)
    return _natively(kernels, update_NRC, num_steps)


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twin. Each step multiplies what rounding did to the one before."""
    return compare(
        "orthogonal matrices",
        lambda update: _natively(kernels, update.detach(), 2),
        lambda update: _by_torch(update.detach(), 2),
        [draw(3, 40, 64)],
        tolerance=0.1,
    )


def _natively(kernels: NativeKernels, update_NRC: Tensor, num_steps: int) -> Tensor:
    N, R, C = update_NRC.shape
    assert update_NRC.is_cpu
    assert update_NRC.dtype == torch.bfloat16
    update_NRC = update_NRC.contiguous()
    out_NRC = torch.empty_like(update_NRC)
    a, b, c = QUINTIC
    work = kernels.native.Orthogonals(
        x=update_NRC.data_ptr(),
        number=N,
        num_rows=R,
        num_columns=C,
        num_steps=num_steps,
        a=a,
        b=b,
        c=c,
        y=out_NRC.data_ptr(),
    )
    kernels.library.orthogonalize(work, torch.get_num_threads())
    return out_NRC


def _by_torch(update_NRC: Tensor, num_steps: int) -> Tensor:
    is_tall = update_NRC.shape[-2] > update_NRC.shape[-1]
    x = update_NRC.mT if is_tall else update_NRC
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if is_tall else x
