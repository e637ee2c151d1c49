"""`kv_b_proj`, which turns latents to keys and values, as each path of attention needs it.

Knows one layer's matrices. Next: latent.py, paged.py.

Shapes: T tokens, H heads, N query width without rotary position, V value width, E = N + V,
C latent width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moestro.ops.kernels import Packed
from moestro.ops.panels import unpack


@dataclass(frozen=True)
class PackedExpansion:
    """The absorbed path's two matrices by head, W^UK and W^UV, packed."""

    w_uk: Packed
    w_uv: Packed


@dataclass(frozen=True)
class Expansion:
    """The matrix by heads: its first N rows make keys, the other V rows values.

    Held as it is or packed, never both.
    """

    weight_HEC: Tensor | None
    packed: PackedExpansion | None = None

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return up_HEC in the dtype of the arithmetic."""
        if self.weight_HEC is not None:
            return self.weight_HEC.to(dtype)
        assert self.packed is not None
        key_HCN, value_HVC = (unpack(part.weights) for part in (self.packed.w_uk, self.packed.w_uv))
        return torch.cat([key_HCN.transpose(1, 2), value_HVC], dim=1).to(dtype)

    def absorb(self, nope_THN: Tensor) -> Tensor:
        """Return queries in the latent space, query_THC."""
        if self.packed is not None:
            return self.packed.w_uk.by_head(nope_THN)
        key_HNC = self.matrix(nope_THN.dtype)[:, : nope_THN.shape[-1]]
        return torch.einsum("thn,hnc->thc", nope_THN, key_HNC)

    def expand(self, mixed_THC: Tensor, num_key_rows: int) -> Tensor:
        """Return the values out_THV of mixed latents; values come after so many key rows."""
        if self.packed is not None:
            return self.packed.w_uv.by_head(mixed_THC)
        value_HVC = self.matrix(mixed_THC.dtype)[:, num_key_rows:]
        return torch.einsum("thc,hvc->thv", mixed_THC, value_HVC)
