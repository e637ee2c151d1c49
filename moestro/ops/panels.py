"""Weights as the native kernels read them: panels of 16 outputs, word after word of inputs.

A word is 32 bits: one float32, two bfloat16, four int8 codes or eight int4 codes of one output. A
quantized panel ends with its groups' scales. Packed once after loading; `unpack` takes them back,
for the kernels' twin. Knows matrices, not what they are for. Next: kernels.py.

Shapes: H matrices of one shape, N outputs, D inputs, n panels, W outputs of a panel, Q words of an
output, g groups of inputs, B bytes of a panel, E experts or rows of `kv_b_proj` per head, F expert
width, G = 2F, C latent width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.quantize import GROUP, Quantized, dequantize, num_groups, quantize

# native/kernels.h has the same numbers.
PANEL = 16
_LINE = 64
# The sign of each byte of a word.
_SIGNS = -0x7F7F7F80

WeightKind = Literal["float32", "bfloat16", "int8", "int4"]
# A matrix as it is, gate and up projections in turn, or `kv_b_proj` by head as the absorbed path
# needs it: what carries queries to the latent space, or what takes mixed latents out of it.
Layout = Literal["rows", "gate_up", "keys", "values"]
KINDS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Panels:
    """Packed matrices of a kind; outputs beyond `num_outputs` are zeros that fill a panel."""

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


# Packs the weights of a name; the names are those of the module that asks.
PackWeights = Callable[[str, Layout], Panels]


class PanelWriter:
    """Panels in the making: matrices, or the gate and up projections of experts in turn.

    Every matrix is put in once; so packing needs no memory beside the panels'.
    """

    def __init__(
        self, kind: WeightKind, num_matrices: int, shape: tuple[int, int], is_gate_up: bool = False
    ) -> None:
        """Make room for matrices of a shape (N, D), with twice as many panels for gate and up."""
        N, D = shape
        self._step = 2 if is_gate_up else 1
        self._num_words = _num_words(kind, D)
        num_panels = -(-N // PANEL) * self._step
        data_HnB = _allocate(num_matrices, num_panels, panel_bytes(kind, D))
        num_outputs = num_panels * PANEL if is_gate_up else N
        self.panels = Panels(data_HnB, kind, num_outputs, D)

    def put(self, weight_ND: Tensor, matrix: int, half: int = 0) -> None:
        """Put a matrix in, rounding its numbers; `half` 1 is the up projection."""
        kind = self.panels.kind
        if kind == "int8" or kind == "int4":
            self.put_codes(quantize(weight_ND, kind), matrix, half)
            return
        weight_ND = weight_ND.to(KINDS[kind])
        if kind == "bfloat16":
            weight_ND = F.pad(weight_ND, (0, weight_ND.shape[1] % 2))
        self._put_words(_view(weight_ND, torch.int32), matrix, half)

    def put_codes(self, weights: Quantized, matrix: int, half: int = 0) -> None:
        """Put a matrix in that is quantized already: bits change places and nothing else."""
        assert weights.kind == self.panels.kind
        words_nQW = self._put_words(_view(weights.codes, torch.int32), matrix, half)
        if weights.kind == "int8":
            # The kernels' products want weights without a sign.
            words_nQW ^= _SIGNS
        halves_nB = self.panels.data_HnB.view(torch.float16)[matrix, half :: self._step]
        start, size = self._num_words * PANEL * 2, weights.scales.shape[1] * PANEL
        _transpose(weights.scales, halves_nB[:, start : start + size])

    def _put_words(self, words_NQ: Tensor, matrix: int, half: int) -> Tensor:
        words_nB = self.panels.data_HnB.view(torch.int32)[matrix, half :: self._step]
        return _transpose(words_NQ, words_nB[:, : self._num_words * PANEL])


def pack(weight_HND: Tensor, kind: WeightKind) -> Panels:
    """Pack matrices, rounding their numbers to a kind."""
    H, N, D = weight_HND.shape
    writer = PanelWriter(kind, H, (N, D))
    for matrix, weight_ND in enumerate(weight_HND.detach()):
        writer.put(weight_ND, matrix)
    return writer.panels


def pack_expansion(up_HEC: Tensor, num_key_rows: int, layout: Layout, kind: WeightKind) -> Panels:
    """Pack one half of `kv_b_proj`, whose first rows of each head make keys."""
    if layout == "keys":
        return pack(up_HEC[:, :num_key_rows].transpose(1, 2), kind)
    return pack(up_HEC[:, num_key_rows:], kind)


def pack_gate_up(gate_up_EGD: Tensor, kind: WeightKind) -> Panels:
    """Pack gate and up projections in turn, panel by panel, so that one task has both."""
    E, G, D = gate_up_EGD.shape
    writer = PanelWriter(kind, E, (G // 2, D), is_gate_up=True)
    for expert, gate_up_GD in enumerate(gate_up_EGD.detach()):
        for half, weight_FD in enumerate(gate_up_GD.chunk(2)):
            writer.put(weight_FD, expert, half)
    return writer.panels


def unpack(panels: Panels) -> Tensor:
    """Return the matrices (H, N, D) again, in float32."""
    kind, depth = panels.kind, panels.depth
    if kind == "int8" or kind == "int4":
        return dequantize(_unpack_quantized(panels, kind))
    words_HNQ = _unpack_words(panels.data_HnB, _num_words(kind, depth))[:, : panels.num_outputs]
    return _view(words_HNQ, KINDS[kind])[..., :depth].float()


def unpack_gate_up(panels: Panels, width: int) -> Tensor:
    """Return the projections (E, G, D) of experts of a width, the gate's rows first."""
    data_HnB, kind, depth = panels.data_HnB, panels.kind, panels.depth
    halves = [unpack(Panels(data_HnB[:, first::2], kind, width, depth)) for first in (0, 1)]
    return torch.cat(halves, dim=1)


def panel_bytes(kind: WeightKind, depth: int) -> int:
    """Return how many bytes a panel takes: its words, its scales, and what fills its last line."""
    size = _num_words(kind, depth) * PANEL * 4
    if kind == "int8" or kind == "int4":
        size += num_groups(depth) * PANEL * 2
    return -(-size // _LINE) * _LINE


def _num_words(kind: WeightKind, depth: int) -> int:
    """Return how many 32-bit words an output's weights take."""
    if kind == "float32":
        return depth
    if kind == "bfloat16":
        return -(-depth // 2)
    return num_groups(depth) * (GROUP // 4 if kind == "int8" else GROUP // 8)


def _allocate(num_matrices: int, num_panels: int, panel_bytes: int) -> Tensor:
    """Return zeros that begin on a cache line, in as few pages as the system can."""
    size = num_matrices * num_panels * panel_bytes
    # numpy asks for huge pages, which cost a fraction of the time to be handed out.
    data = torch.from_numpy(np.zeros(size + _LINE, dtype=np.uint8))
    start = -data.data_ptr() % _LINE
    return data[start : start + size].view(num_matrices, num_panels, panel_bytes)


def _transpose(rows_NX: Tensor, panels_nB: Tensor) -> Tensor:
    """Write rows side by side, PANEL to a panel; return what was written, (n, X, W)."""
    N, X = rows_NX.shape
    panels_nXW = panels_nB.unflatten(1, (X, PANEL)) if X else panels_nB.new_empty(0, 0, PANEL)
    num_whole = N // PANEL
    whole_nWX = rows_NX[: num_whole * PANEL].unflatten(0, (num_whole, PANEL))
    panels_nXW[:num_whole] = whole_nWX.transpose(1, 2)
    if N % PANEL and X:
        panels_nXW[num_whole, :, : N % PANEL] = rows_NX[num_whole * PANEL :].T
    return panels_nXW


def _unpack_words(data_HnB: Tensor, num_words: int) -> Tensor:
    H, n, _ = data_HnB.shape
    words_HnX = _view(data_HnB[:, :, : num_words * PANEL * 4], torch.int32)
    words_HnQW = words_HnX.view(H, n, num_words, PANEL)
    return words_HnQW.transpose(2, 3).reshape(H, n * PANEL, num_words)


def _unpack_quantized(panels: Panels, kind: Literal["int8", "int4"]) -> Quantized:
    H, n, _ = panels.data_HnB.shape
    g, N = num_groups(panels.depth), panels.num_outputs
    num_words = _num_words(kind, panels.depth)
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
