"""Weights as the native kernels read them: panels of 16 outputs, one word of inputs after the other.

A word is 32 bits: one float32, two bfloat16, four int8 codes or eight int4 codes of one output. A
quantized panel ends with its groups' scales. Packed once after loading; `unpack` takes them back,
for the kernels' twin. Knows matrices, not what they are for. Next: kernels.py.

Shapes: H matrices of one shape, N outputs, D inputs, n panels, W outputs of a panel, Q words of an
output, g groups of inputs, B bytes of a panel, E experts, F expert width, G = 2F.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.quantize import GROUP, Quantized, dequantize, num_groups, quantize

# native/kernels.h has the same numbers.
PANEL = 16
_LINE = 64

WeightKind = Literal["float32", "bfloat16", "int8", "int4"]
KINDS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Panels:
    """Packed matrices of a kind; outputs beyond `num_outputs` are zeros that fill the last panel."""

    data_HnB: Tensor
    kind: WeightKind
    num_outputs: int
    depth: int

    @property
    def num_matrices(self) -> int:
        """How many matrices there are, experts or heads."""
        return self.data_HnB.shape[0]

    @property
    def num_panels(self) -> int:
        """How many panels each matrix has."""
        return self.data_HnB.shape[1]


def pack(weight_HND: Tensor, kind: WeightKind) -> Panels:
    """Pack matrices, rounding their numbers to a kind."""
    if kind == "int8" or kind == "int4":
        return pack_quantized(quantize(weight_HND.detach(), kind))
    depth = weight_HND.shape[2]
    weight_HND = weight_HND.detach().to(KINDS[kind])
    if kind == "bfloat16":
        weight_HND = F.pad(weight_HND, (0, depth % 2))
    data_HnB = _pack_words(_view(weight_HND, torch.int32))
    return Panels(_fill_lines(data_HnB), kind, weight_HND.shape[1], depth)


def pack_quantized(weights: Quantized) -> Panels:
    """Pack matrices that are quantized already: their bits change places and nothing else."""
    codes = weights.codes.contiguous()
    if weights.kind == "int8":
        # The kernels' products want weights without a sign.
        codes = codes.view(torch.uint8) ^ 0x80
    words_HnB = _pack_words(_view(codes, torch.int32))
    scales_HNg = _fill_panels(weights.scales)
    H, N, g = scales_HNg.shape
    scales_HngW = scales_HNg.view(H, N // PANEL, PANEL, g).transpose(2, 3).contiguous()
    data_HnB = torch.cat([words_HnB, _view(scales_HngW, torch.uint8).flatten(2)], dim=-1)
    return Panels(_fill_lines(data_HnB), weights.kind, codes.shape[1], weights.depth)


def unpack(panels: Panels) -> Tensor:
    """Return the matrices (H, N, D) again, in float32."""
    kind, depth = panels.kind, panels.depth
    if kind == "int8" or kind == "int4":
        return dequantize(_unpack_quantized(panels, kind))
    num_words = depth if kind == "float32" else -(-depth // 2)
    words_HNQ = _unpack_words(panels.data_HnB, num_words)[:, : panels.num_outputs]
    return _view(words_HNQ, KINDS[kind])[..., :depth].float()


def pack_gate_up(gate_up_EGD: Tensor, kind: WeightKind) -> Panels:
    """Pack gate and up projections in turn, panel by panel, so that one task has both."""
    gate_EFD, up_EFD = gate_up_EGD.chunk(2, dim=1)
    return join_gate_up(pack(gate_EFD, kind), pack(up_EFD, kind))


def join_gate_up(gate: Panels, up: Panels) -> Panels:
    """Join both projections' panels in turn."""
    data_HnB = torch.stack([gate.data_HnB, up.data_HnB], dim=2).flatten(1, 2)
    return Panels(data_HnB, gate.kind, data_HnB.shape[1] * PANEL, gate.depth)


def unpack_gate_up(panels: Panels, width: int) -> Tensor:
    """Return the projections (E, G, D) of experts of a width, the gate's rows first."""
    data_HnB, kind, depth = panels.data_HnB, panels.kind, panels.depth
    halves = [unpack(Panels(data_HnB[:, first::2], kind, width, depth)) for first in (0, 1)]
    return torch.cat(halves, dim=1)


def _pack_words(words_HNQ: Tensor) -> Tensor:
    """Return panels of 32-bit words as bytes (H, n, Q * W * 4)."""
    H, _, Q = words_HNQ.shape
    words_HnWQ = _fill_panels(words_HNQ).view(H, -1, PANEL, Q)
    return _view(words_HnWQ.transpose(2, 3), torch.uint8).flatten(2)


def _unpack_words(data_HnB: Tensor, num_words: int) -> Tensor:
    H, n, _ = data_HnB.shape
    words_HnX = _view(data_HnB[:, :, : num_words * PANEL * 4], torch.int32)
    words_HnQW = words_HnX.view(H, n, num_words, PANEL)
    return words_HnQW.transpose(2, 3).reshape(H, n * PANEL, num_words)


def _unpack_quantized(panels: Panels, kind: Literal["int8", "int4"]) -> Quantized:
    H, n, _ = panels.data_HnB.shape
    g, N = num_groups(panels.depth), panels.num_outputs
    num_words = g * (GROUP // 4 if kind == "int8" else GROUP // 8)
    words_HNQ = _unpack_words(panels.data_HnB, num_words)[:, :N]
    codes = _view(words_HNQ, torch.uint8)
    if kind == "int8":
        codes = (codes ^ 0x80).view(torch.int8)
    start = num_words * PANEL * 4
    halves = _view(panels.data_HnB[:, :, start : start + g * PANEL * 2], torch.float16)
    scales_HNg = halves.view(H, n, g, PANEL).transpose(2, 3).reshape(H, n * PANEL, g)[:, :N]
    return Quantized(codes, scales_HNg, panels.depth, kind)


def _view(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the same bytes as numbers of another size, the last dimension longer or shorter."""
    # Strided anew: a dimension of one may have any stride and pass for contiguous.
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(dtype)
    return flat.view(*tensor.shape[:-1], -1 if tensor.numel() else 0)


def _fill_panels(rows_HNX: Tensor) -> Tensor:
    return F.pad(rows_HNX, (0, 0, 0, -rows_HNX.shape[1] % PANEL))


def _fill_lines(data_HnB: Tensor) -> Tensor:
    """Fill panels up to whole cache lines; the first byte lies on one, too."""
    return F.pad(data_HnB, (0, -data_HnB.shape[2] % _LINE)).contiguous()
