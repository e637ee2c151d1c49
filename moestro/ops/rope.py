"""Rotary positions: frequencies, with YaRN's stretch, and the rotation itself.

Plain functions on tensors; knows no layer and no configuration class. Next: rowwise.py, latent.py.

Shapes: B sequences, S tokens, H heads, R rotary width, P = R / 2 pairs.
"""

import math

import torch
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.native import NativeKernels
from moestro.ops.rowwise import rotate_heads


def frequencies(dim: int, theta: float) -> Tensor:
    """Return theta^(-2i/R) for each of the P pairs, float32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def yarn_frequencies(
    dim: int,
    theta: float,
    factor: float,
    original_length: int,
    turns: tuple[float, float],
    truncate: bool = True,
) -> Tensor:
    """Return YaRN's frequencies (arXiv 2309.00071, eq. 17-23), float32, one for each pair.

    Pairs that turn more than `turns[0]` times (beta_fast) over the original length keep their
    frequency, pairs that turn less than `turns[1]` times (beta_slow) are slowed by `factor`; a ramp
    joins the two.
    """
    kept_P = frequencies(dim, theta)

    def pair_that_turns(count: float) -> float:
        return dim * math.log(original_length / (count * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(turns[0]), pair_that_turns(turns[1])
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # The reference widens an empty ramp by this much rather than divide by zero.
    span = high - low or 0.001
    slowed_P = ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return kept_P / factor * slowed_P + kept_P * (1 - slowed_P)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Return YaRN's temperature correction, 0.1 m ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def angles(positions_S: Tensor, frequencies_P: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return cos_SP and sin_SP for token positions, times `scale` (YaRN's attention factor)."""
    # float32: a bfloat16 position above 256 is no longer an integer.
    angles_SP = positions_S.float()[..., None] * frequencies_P
    return angles_SP.cos() * scale, angles_SP.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    """Rotate the pairs of the last dimension of `x`; `cos` and `sin` broadcast against its pairs.

    Pairs are neighbours (DeepSeek's checkpoints) or half a width apart. Either way the result has
    all first halves before all second halves: queries and keys agree on that, and only their
    products matter.
    """
    kernels = native_for(x, torch.bfloat16, find_fault)
    if kernels is not None and x.dim() - cos.dim() == 1 and x.dim() in (3, 4):
        # One head, or heads that share their token's angles.
        x_BSHR = x if x.dim() == 4 else x[:, :, None]
        cos_SP, sin_SP = (angle.flatten(0, -2) for angle in (cos, sin))
        return rotate_heads(kernels, x_BSHR, cos_SP, sin_SP, is_interleaved).view_as(x)
    return _rotate_by_torch(x, cos, sin, is_interleaved)


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twin, both ways in which pairs lie."""
    angles_SP = draw(20, 24, seed=1, dtype=torch.float32)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    faults = (
        compare(
            "a rotation",
            lambda x_BSHR, way=way: rotate_heads(kernels, x_BSHR, cos_SP, sin_SP, way),
            lambda x_BSHR, way=way: _rotate_by_torch(x_BSHR, cos_SP[:, None], sin_SP[:, None], way),
            [draw(2, 20, 3, 48)],
        )
        for way in (True, False)
    )
    return next(filter(None, faults), None)


def _rotate_by_torch(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    if is_interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)
