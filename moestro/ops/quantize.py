"""int8 and int4 in groups of 32 along the input, a float16 scale each: torch, the specification.

The numbers are those of GGUF's Q8_0 and Q4_0, bit for bit. Knows one matrix, not where it came
from. Next: pack.py for FP8 blocks, moestro/weights/quantize.py for whole checkpoints.

Shapes: N rows, D columns, P = D filled up to whole groups, g groups of 32 along P, M groups in all.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["int8", "int4"]
GROUP = 32
_INT8_LIMIT = 127
# A nibble less this is the code, -8 to 7.
_ZERO = 8
# What the largest number of a group may become: a little less than the range clips it and leaves
# the others finer steps; the positive ones use the code 7 for it instead of -8.
_PEAKS = (-7.0, -7.5, -8.0, -8.5, 6.0, 6.5, 7.0, 7.5)
# Searched at once: few enough to stay in a core's cache.
_CHUNK_GROUPS = 4096


@dataclass(frozen=True)
class Quantized:
    """A matrix, or a stack of them, as codes and scales; `depth` is D before it was filled up.

    `codes`: int8 (..., N, P), or uint8 (..., N, P / 2) in which byte j of a group's 16 holds inputs
    j (low nibble) and 16 + j (high nibble). `scales`: float16 (..., N, P / 32).
    """

    codes: Tensor
    scales: Tensor
    depth: int
    kind: Kind


def num_groups(depth: int) -> int:
    """Return how many groups cover `depth` inputs; the last may be filled up with zeros."""
    return -(-depth // GROUP)


def codes_shape(shape: tuple[int, ...], kind: Kind) -> tuple[int, ...]:
    """Return the shape of the codes of a matrix of some shape."""
    width = num_groups(shape[-1]) * GROUP
    return (*shape[:-1], width if kind == "int8" else width // 2)


def scales_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the scales of a matrix of some shape."""
    return (*shape[:-1], num_groups(shape[-1]))


@torch.no_grad()
def quantize(weight: Tensor, kind: Kind, importance_D: Tensor | None = None) -> Quantized:
    """Round a matrix (..., N, D) to codes and scales with the least squared error per group.

    `importance_D` weighs the error of each input; it matters to int4 alone.
    """
    depth = weight.shape[-1]
    fill = num_groups(depth) * GROUP - depth
    groups_M32 = F.pad(weight.float(), (0, fill)).reshape(-1, GROUP)
    if kind == "int8":
        scale_M = groups_M32.abs().amax(dim=-1) / _INT8_LIMIT
        codes_M32, scale_M = _round(groups_M32, scale_M, _INT8_LIMIT, _INT8_LIMIT)
        codes = codes_M32.to(torch.int8).view(codes_shape(weight.shape, kind))
    else:
        codes_M32, scale_M = _search(groups_M32, _importance(importance_D, fill, groups_M32))
        codes = _to_nibbles(codes_M32).view(codes_shape(weight.shape, kind))
    return Quantized(codes, scale_M.view(scales_shape(weight.shape)), depth, kind)


def dequantize(quantized: Quantized) -> Tensor:
    """Multiply each group's codes by its scale: float32 (..., N, D)."""
    codes = quantized.codes if quantized.kind == "int8" else from_nibbles(quantized.codes)
    grouped = codes.unflatten(-1, (-1, GROUP)).float()
    values = grouped.mul_(quantized.scales.float().unsqueeze(-1)).flatten(-2)
    return values[..., : quantized.depth].contiguous()


def are_finite(values: Tensor) -> bool:
    """Say whether all numbers are finite."""
    # numpy's: torch wakes its threads for what one does in microseconds.
    return bool(np.isfinite(values.numpy()).all())


def from_nibbles(packed: Tensor) -> Tensor:
    """Return the int8 codes (..., P), -8 to 7, of int4's bytes (..., P / 2)."""
    grouped = packed.unflatten(-1, (-1, GROUP // 2))
    both = torch.cat([grouped & 15, grouped >> 4], dim=-1)
    return (both.to(torch.int8) - _ZERO).flatten(-2)


def _to_nibbles(codes_M32: Tensor) -> Tensor:
    nibbles_M32 = (codes_M32 + _ZERO).to(torch.uint8)
    low, high = nibbles_M32.chunk(2, dim=-1)
    return low | (high << 4)


def _importance(importance_D: Tensor | None, fill: int, groups_M32: Tensor) -> Tensor:
    if importance_D is None:
        return torch.ones(1, GROUP)
    # What fills a group up is zero in any scale.
    each = F.pad(importance_D.float(), (0, fill), value=0.0).view(-1, GROUP)
    # A group whose inputs never occurred is as good as any other.
    each = torch.where(each.sum(dim=-1, keepdim=True) > 0, each, torch.ones_like(each))
    return each.repeat(len(groups_M32) // len(each), 1)


def _search(groups_M32: Tensor, importance_M32: Tensor) -> tuple[Tensor, Tensor]:
    """Return int4 codes, as float32, and float16 scales."""
    codes_M32 = torch.empty_like(groups_M32)
    scale_M = torch.empty(len(groups_M32), dtype=torch.float16)
    for start in range(0, len(groups_M32), _CHUNK_GROUPS):
        part = slice(start, start + _CHUNK_GROUPS)
        importance = importance_M32 if len(importance_M32) == 1 else importance_M32[part]
        found_M = _best_scale(groups_M32[part], importance)
        codes_M32[part], scale_M[part] = _round(groups_M32[part], found_M, _ZERO, _ZERO - 1)
    return codes_M32, scale_M


def _best_scale(groups_M32: Tensor, importance: Tensor) -> Tensor:
    """Try each peak with the scale that fits its codes best; keep the one that explains most."""
    weighted_M32 = groups_M32 * importance
    peak_M1 = groups_M32.gather(1, groups_M32.abs().argmax(dim=1, keepdim=True))
    best_M = torch.full((len(groups_M32),), -1.0)
    scale_M = torch.zeros_like(best_M)
    for peak in _PEAKS:
        # A group of zeros has any scale; 0 keeps its codes 0.
        inverse_M1 = torch.where(peak_M1 == 0, 0.0, peak / peak_M1)
        fit_M, explained_M = _fit(groups_M32 * inverse_M1, weighted_M32, importance)
        is_better_M = explained_M > best_M
        best_M = torch.where(is_better_M, explained_M, best_M)
        scale_M = torch.where(is_better_M, fit_M, scale_M)
    # Once more from the fitted scale, whose nearest codes may be others.
    inverse_M1 = torch.where(scale_M == 0, 0.0, 1 / scale_M)[:, None]
    return _fit(groups_M32 * inverse_M1, weighted_M32, importance)[0]


def _fit(scaled_M32: Tensor, weighted_M32: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Round to codes; return the scale that fits them best and how much of the squares it takes."""
    codes_M32 = scaled_M32.round_().clamp_(-_ZERO, _ZERO - 1)
    product_M = (weighted_M32 * codes_M32).sum(dim=1)
    square_M = (codes_M32 * codes_M32 * importance).sum(dim=1)
    fit_M = torch.where(square_M > 0, product_M / square_M, 0.0)
    return fit_M, product_M * fit_M


def _round(groups_M32: Tensor, scale_M: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Return the codes nearest to a group under its scale as float16 holds it, and that scale."""
    largest = torch.finfo(torch.float16).max
    half_M = scale_M.clamp(-largest, largest).to(torch.float16)
    kept_M1 = half_M.float()[:, None]
    inverse_M1 = torch.where(kept_M1 == 0, 0.0, 1 / kept_M1)
    return (groups_M32 * inverse_M1).round_().clamp_(-lowest, highest), half_M
