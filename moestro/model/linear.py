"""How a weight is stored and applied: as a parameter to train, packed for the kernels to infer.

Knows one matrix. Next: attention.py, feedforward.py; prepare.py for a whole model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moestro.ops.kernels import Kernels, Packed
from moestro.ops.panels import PackWeights
from moestro.ops.products import linear
from moestro.ops.rowwise import add_norm, rms_norm


class Linear(nn.Module):
    """A matrix, kept in its own dtype and applied in that of its input."""

    def __init__(self, num_in: int, num_out: int, has_bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.bias = nn.Parameter(torch.empty(num_out)) if has_bias else None
        self.packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the last dimension of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.packed is None:
            product = linear(x, self.weight.to(x.dtype))
        else:
            product = self.packed.linear(x)
        return product if bias is None else product + bias

    def prepare(self, kernels: Kernels, pack: PackWeights) -> None:
        """Take the matrix packed, for good: the parameter is gone, so that memory holds it once."""
        self.packed = Packed(kernels, pack("weight", "rows"))
        del self.weight


class Embedding(nn.Module):
    """One row per token."""

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        # Not torch's own: that draws first weights, and on the meta device imports its compiler.
        self.weight = nn.Parameter(torch.empty(num_tokens, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Look tokens up."""
        return F.embedding(tokens, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square normalization over the last dimension, with a learned scale."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize in float32 and return the dtype of `x`."""
        return rms_norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x + more`, and the norm of that sum."""
        return add_norm(x, more, self.weight, self.eps)
