"""Weights as the native kernels read them: strips of 32 outputs, word after word of inputs.

A word is 32 bits: one float32, two bfloat16, four int8 codes or eight int4 codes of one output. In
a quantized strip each group's codes are followed by its scales. A strip's halves are panels, the
unit in which kernels work. `interleave` is the specification of how they are written, `unpack`
takes them back for the kernels' twin. Knows matrices, not what they are for. Next: kernels.py,
packing.py.

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

from moestro.ops.quantize import GROUP, Quantized, dequantize, num_groups

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


@dataclass(frozen=True)
class Rows:
    """A matrix's outputs as files have them: numbers of the kind, or codes and scales.

    `half` is the panel of each strip that they go to; None fills strips.
    """

    numbers_ND: Tensor
    scales_Ng: Tensor | None
    matrix: int
    half: int | None = None


def empty_panels(
    kind: WeightKind, num_matrices: int, shape: tuple[int, int], is_gate_up: bool = False
) -> Panels:
    """Make room for matrices of a shape (N, D), or for gates and ups of one, a panel each in turn.

    Outputs beyond N are zeros.
    """
    N, D = shape
    num_strips = -(-N // (PANEL if is_gate_up else _OUTPUTS))
    data_HnB = _allocate(num_matrices, num_strips, strip_bytes(kind, D))
    return Panels(data_HnB, kind, num_strips * _OUTPUTS if is_gate_up else N, D)


def interleave(rows: Rows, panels: Panels) -> None:
    """Write outputs side by side: bits change places, and int8 its signs."""
    words_HngqW, scales_HngW = _split(panels)
    _, _, g, q, _ = words_HngqW.shape
    bytes_NB = _view(rows.numbers_ND, torch.uint8)
    words_NQ = _view(F.pad(bytes_NB, (0, g * q * 4 - bytes_NB.shape[1])), torch.int32)
    words_ngqW = _transpose(words_NQ.unflatten(1, (g, q)), words_HngqW, rows)
    if panels.kind == "int8":
        # The kernels' products want weights without a sign.
        words_ngqW ^= _SIGNS
    if rows.scales_Ng is not None:
        _transpose(rows.scales_Ng[..., None], scales_HngW[:, :, :, None], rows)


def _transpose(rows_Ngq: Tensor, to_HngqW: Tensor, rows: Rows) -> Tensor:
    """Write rows to their place; return what was written, (n, g, q, W)."""
    width = _OUTPUTS if rows.half is None else PANEL
    start = (rows.half or 0) * width
    to_ngqW = to_HngqW[rows.matrix, ..., start : start + width]
    num_whole, rest = divmod(len(rows_Ngq), width)
    whole_nWgq = rows_Ngq[: num_whole * width].unflatten(0, (num_whole, width))
    to_ngqW[:num_whole] = whole_nWgq.permute(0, 2, 3, 1)
    if rest:
        to_ngqW[num_whole, ..., :rest] = rows_Ngq[num_whole * width :].permute(1, 2, 0)
    return to_ngqW


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
