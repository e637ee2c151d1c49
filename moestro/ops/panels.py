"""Weights as the native kernels read them: strips of 32 outputs, word after word of inputs.

A word is 32 bits: one float32, two bfloat16, four int8 codes or eight int4 codes of one output. In
a quantized strip each group's codes are followed by its scales. A strip's halves are panels, the
unit in which kernels work. Packed once after loading; `unpack` takes them back, for the kernels'
twin. Knows matrices, not what they are for. Next: kernels.py.

Shapes: H matrices of one shape, N outputs, D inputs, n strips, W outputs of a strip or of a panel
of it, Q words of an output, g groups of inputs, q words of a group, B bytes of a strip, E experts
or rows of `kv_b_proj` per head, F expert width, G = 2F, C latent width.
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
STRIP = 2
_LINE = 64
_OUTPUTS = STRIP * PANEL
# The sign of each byte of a word.
_SIGNS = -0x7F7F7F80

WeightKind = Literal["float32", "bfloat16", "int8", "int4"]
# A matrix as it is, gate and up projections in turn, or `kv_b_proj` by head as the absorbed path
# needs it: what carries queries to the latent space, or what takes mixed latents out of it.
Layout = Literal["rows", "gate_up", "keys", "values"]
KINDS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Panels:
    """Packed matrices of a kind; outputs beyond `num_outputs` are zeros that fill a strip."""

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
        return self.data_HnB.shape[1] * STRIP


# Packs the weights of a name; the names are those of the module that asks.
PackWeights = Callable[[str, Layout], Panels]


class PanelWriter:
    """Panels in the making: matrices, or the gate and up projections of experts in turn.

    Every matrix is put in once; so packing needs no memory beside the panels'.
    """

    def __init__(
        self, kind: WeightKind, num_matrices: int, shape: tuple[int, int], is_gate_up: bool = False
    ) -> None:
        """Make room for matrices of a shape (N, D); a panel of gates lies beside one of ups."""
        N, D = shape
        # How many outputs of a matrix lie side by side.
        self._width = PANEL if is_gate_up else _OUTPUTS
        num_strips = -(-N // self._width)
        data_HnB = _allocate(num_matrices, num_strips, strip_bytes(kind, D))
        num_outputs = num_strips * _OUTPUTS if is_gate_up else N
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
        words_ngqW = self._put_words(_view(weights.codes, torch.int32), matrix, half)
        if weights.kind == "int8":
            # The kernels' products want weights without a sign.
            words_ngqW ^= _SIGNS
        scales_HngW = _split(self.panels)[1]
        self._transpose(weights.scales[..., None], scales_HngW[:, :, :, None], matrix, half)

    def _put_words(self, words_NQ: Tensor, matrix: int, half: int) -> Tensor:
        words_HngqW = _split(self.panels)[0]
        g = words_HngqW.shape[2]
        return self._transpose(words_NQ.unflatten(1, (g, -1)), words_HngqW, matrix, half)

    def _transpose(self, rows_Ngq: Tensor, to_HngqW: Tensor, matrix: int, half: int) -> Tensor:
        """Write rows side by side; return what was written, (n, g, q, W)."""
        width = self._width
        to_ngqW = to_HngqW[matrix, ..., half * width : (half + 1) * width]
        num_whole, rest = divmod(len(rows_Ngq), width)
        whole_nWgq = rows_Ngq[: num_whole * width].unflatten(0, (num_whole, width))
        to_ngqW[:num_whole] = whole_nWgq.permute(0, 2, 3, 1)
        if rest:
            to_ngqW[num_whole, ..., :rest] = rows_Ngq[num_whole * width :].permute(1, 2, 0)
        return to_ngqW


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
    words_HNQ = _rows(_split(panels)[0], panels.num_outputs)
    return _view(words_HNQ, KINDS[kind])[..., :depth].float()


def unpack_gate_up(panels: Panels, width: int) -> Tensor:
    """Return the projections (E, G, D) of experts of a width, the gate's rows first."""
    halves_EnhWD = unpack(panels).unflatten(1, (-1, STRIP, PANEL))
    return halves_EnhWD.transpose(1, 2).flatten(2, 3)[:, :, :width].flatten(1, 2)


def strip_bytes(kind: WeightKind, depth: int) -> int:
    """Return how many bytes a strip takes: its words, and its scales if it has them."""
    groups, words = _num_words(kind, depth)
    scale_bytes = 2 if kind == "int8" or kind == "int4" else 0
    return groups * (words * 4 + scale_bytes) * _OUTPUTS


def _num_words(kind: WeightKind, depth: int) -> tuple[int, int]:
    """Return into how many groups an output's weights fall, and the 32-bit words of a group."""
    if kind == "float32":
        return 1, depth
    if kind == "bfloat16":
        return 1, -(-depth // 2)
    return num_groups(depth), GROUP // 4 if kind == "int8" else GROUP // 8


def _allocate(num_matrices: int, num_strips: int, strip_bytes: int) -> Tensor:
    """Return zeros that begin on a cache line, in as few pages as the system can."""
    size = num_matrices * num_strips * strip_bytes
    # numpy asks for huge pages, which cost a fraction of the time to be handed out.
    data = torch.from_numpy(np.zeros(size + _LINE, dtype=np.uint8))
    start = -data.data_ptr() % _LINE
    return data[start : start + size].view(num_matrices, num_strips, strip_bytes)


def _split(panels: Panels) -> tuple[Tensor, Tensor]:
    """Return views of the words (H, n, g, q, W) and of the scales (H, n, g, W), if any."""
    groups, words = _num_words(panels.kind, panels.depth)
    bytes_HngB = panels.data_HnB.unflatten(2, (groups, -1 if groups else 0))
    size = words * 4 * _OUTPUTS
    words_HngB = bytes_HngB.view(torch.int32)[..., : size // 4]
    return words_HngB.unflatten(3, (words, _OUTPUTS)), bytes_HngB.view(torch.float16)[
        ..., size // 2 :
    ]


def _rows(words_HngqW: Tensor, num_outputs: int) -> Tensor:
    """Return each output's words (H, N, Q) again."""
    return words_HngqW.permute(0, 1, 4, 2, 3).flatten(3, 4).flatten(1, 2)[:, :num_outputs]


def _unpack_quantized(panels: Panels, kind: Literal["int8", "int4"]) -> Quantized:
    words_HngqW, scales_HngW = _split(panels)
    codes = _view(_rows(words_HngqW, panels.num_outputs), torch.uint8)
    if kind == "int8":
        codes = (codes ^ 0x80).view(torch.int8)
    scales_HNg = _rows(scales_HngW[:, :, :, None], panels.num_outputs)
    return Quantized(codes, scales_HNg, panels.depth, kind)


def _view(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the same bytes as numbers of another size, the last dimension longer or shorter."""
    # Strided anew: a dimension of one may have any stride and pass for contiguous.
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(dtype)
    return flat.view(*tensor.shape[:-1], -1 if tensor.numel() else 0)
