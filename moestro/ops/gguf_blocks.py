"""GGUF's blocks of rounded numbers to codes and scales or floats: torch only, the specification.

Layouts are ggml's; Q8_0 and Q4_0 are quantize.py's own, scale before codes. Knows one matrix's
bytes, not where they came from. Next: moestro/weights/gguf_weights.py.

Shapes: M blocks, 32 or 256 numbers in each, 8 or 16 groups within one of 256.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moestro.ops.quantize import Kind, Quantized

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES: dict[str, Kind] = {"Q8_0": "int8", "Q4_0": "int4"}
_BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}


def read_floats(data: Tensor, type_name: str) -> Tensor:
    """View the bytes of plain numbers as such; the result is flat."""
    return data.view(_FLOATS[type_name])


def is_float(type_name: str) -> bool:
    """Say whether a type holds plain numbers."""
    return type_name in _FLOATS


def split_codes(data: Tensor, type_name: str, depth: int) -> Quantized:
    """Part the bytes of Q8_0 or Q4_0 rows into codes (N, ...) and scales (N, depth / 32)."""
    kind = CODES[type_name]
    blocks = data.view(-1, depth // 32, _BLOCK_BYTES[type_name])
    scales = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
    codes = blocks[..., 2:].contiguous().flatten(-2)
    return Quantized(codes.view(torch.int8) if kind == "int8" else codes, scales, depth, kind)


def join_codes(quantized: Quantized) -> Tensor:
    """Return the bytes (N, ...) of Q8_0 or Q4_0 rows; the depth must be whole groups."""
    scales = quantized.scales.contiguous().view(torch.uint8).unflatten(-1, (-1, 2))
    codes = quantized.codes.contiguous().view(torch.uint8)
    codes = codes.unflatten(-1, (scales.shape[-2], -1))
    return torch.cat([scales, codes], dim=-1).flatten(-2)


def read_blocks(data: Tensor, type_name: str) -> Tensor:
    """Return the float32 numbers of any other type of block; the result is flat."""
    num_bytes, read = _READERS[type_name]
    return read(data.view(-1, num_bytes)).flatten()


def _q4_1(blocks_M: Tensor) -> Tensor:
    scale, least = _half(blocks_M[:, 0:2]), _half(blocks_M[:, 2:4])
    return _halves(blocks_M[:, 4:]) * scale + least


def _q5_0(blocks_M: Tensor) -> Tensor:
    codes = _halves(blocks_M[:, 6:]) + _fifth(blocks_M[:, 2:6])
    return (codes - 16) * _half(blocks_M[:, 0:2])


def _q5_1(blocks_M: Tensor) -> Tensor:
    scale, least = _half(blocks_M[:, 0:2]), _half(blocks_M[:, 2:4])
    return (_halves(blocks_M[:, 8:]) + _fifth(blocks_M[:, 4:8])) * scale + least


def _q4_k(blocks_M: Tensor) -> Tensor:
    scale_M8, least_M8 = _eight_scales(blocks_M)
    codes_M8 = _nibble_rows(blocks_M[:, 16:])
    return codes_M8 * scale_M8[..., None] - least_M8[..., None]


def _q5_k(blocks_M: Tensor) -> Tensor:
    scale_M8, least_M8 = _eight_scales(blocks_M)
    # Bit g of byte l is the fifth bit of number l of group g.
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    fifth_M8 = ((blocks_M[:, None, 16:48] >> shifts) & 1).float() * 16
    codes_M8 = _nibble_rows(blocks_M[:, 48:]) + fifth_M8
    return codes_M8 * scale_M8[..., None] - least_M8[..., None]


def _q6_k(blocks_M: Tensor) -> Tensor:
    # Two halves of 128 numbers; in each, 64 bytes of low nibbles and 32 of upper pairs of bits.
    low = blocks_M[:, :128].view(-1, 2, 2, 32)
    high = blocks_M[:, 128:192].view(-1, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    low = torch.cat([low & 15, low >> 4], dim=2)
    codes = (low | (((high >> shifts) & 3) << 4)).float() - 32
    scales = blocks_M[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks_M[:, 208:])
    return codes.reshape(-1, 16, 16) * scales[..., None]


_READERS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}


def _half(pair_M2: Tensor) -> Tensor:
    """Read one float16 of each block."""
    return pair_M2.contiguous().view(torch.float16).float()


def _halves(packed: Tensor) -> Tensor:
    """Return the low nibbles of each block's bytes, then the high ones."""
    return torch.cat([packed & 15, packed >> 4], dim=-1).float()


def _fifth(bits_M4: Tensor) -> Tensor:
    """Spread 32 bits over a block's numbers, as 0 or 16."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((bits_M4[..., None] >> shifts) & 1).flatten(-2).float() * 16


def _nibble_rows(packed_M128: Tensor) -> Tensor:
    """Return 8 groups of 32 codes: of each 32 bytes the low nibbles, then the high ones."""
    rows = packed_M128.view(-1, 4, 1, 32)
    return torch.cat([rows & 15, rows >> 4], dim=2).view(-1, 8, 32).float()


def _eight_scales(blocks_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and the offsets of 8 groups, 6 bits each in 12 bytes, times the block's."""
    packed = blocks_M[:, 4:16].view(-1, 3, 4)
    first, second, third = packed[:, 0], packed[:, 1], packed[:, 2]
    scale = torch.cat([first & 63, (third & 15) | (first >> 6 << 4)], dim=-1)
    least = torch.cat([second & 63, (third >> 4) | (second >> 6 << 4)], dim=-1)
    return scale * _half(blocks_M[:, 0:2]), least * _half(blocks_M[:, 2:4])
