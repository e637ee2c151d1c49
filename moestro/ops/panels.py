"""Weights as the native kernels read them: panels of 16 outputs, one input after the other.

Packed once after loading; `unpack` takes them back, for the kernels' twin. Knows matrices, not what
they are for. Next: kernels.py.

Shapes: H matrices of one shape, N outputs, D inputs, n panels, W outputs of a panel, E experts,
F expert width, G = 2F.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# native/kernels.h has the same number.
PANEL = 16

WeightKind = Literal["float32", "bfloat16"]
KINDS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Panels:
    """Packed matrices; outputs beyond `num_outputs` are zeros that fill the last panel."""

    data_HnDW: Tensor
    num_outputs: int

    @property
    def num_matrices(self) -> int:
        """How many matrices there are, experts or heads."""
        return self.data_HnDW.shape[0]

    @property
    def depth(self) -> int:
        """How many inputs each matrix has."""
        return self.data_HnDW.shape[2]

    @property
    def num_columns(self) -> int:
        """How many outputs there are with those that fill the last panel."""
        return self.data_HnDW.shape[1] * PANEL


def pack(weight_HND: Tensor, kind: WeightKind) -> Panels:
    """Pack matrices, rounding their numbers to a kind."""
    H, N, D = weight_HND.shape
    filled = F.pad(weight_HND.detach().to(KINDS[kind]), (0, 0, 0, -N % PANEL))
    data_HnDW = filled.view(H, -1, PANEL, D).transpose(2, 3).contiguous()
    return Panels(data_HnDW, N)


def unpack(panels: Panels) -> Tensor:
    """Return the matrices (H, N, D) again, in float32."""
    H, _, D, _ = panels.data_HnDW.shape
    weight_HND = panels.data_HnDW.transpose(2, 3).reshape(H, -1, D)
    return weight_HND[:, : panels.num_outputs].float()


def pack_gate_up(gate_up_EGD: Tensor, kind: WeightKind) -> Panels:
    """Pack gate and up projections in turn, panel by panel, so that one task has both."""
    gate_EFD, up_EFD = gate_up_EGD.chunk(2, dim=1)
    parts = [pack(half, kind).data_HnDW for half in (gate_EFD, up_EFD)]
    data_HnDW = torch.stack(parts, dim=2).flatten(1, 2)
    return Panels(data_HnDW, data_HnDW.shape[1] * PANEL)


def unpack_gate_up(panels: Panels, width: int) -> Tensor:
    """Return the projections (E, G, D) of experts of a width, the gate's rows first."""
    data_HnDW = panels.data_HnDW
    halves = [unpack(Panels(data_HnDW[:, first::2], width)) for first in (0, 1)]
    return torch.cat(halves, dim=1)
