"""FP8 blocks with scales, as DeepSeek publishes its weights: torch only, the specification.

Knows one matrix, not where it came from. Next: moestro/weights/load.py.

Shapes: N rows, D columns, n and d blocks along them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Block = tuple[int, int]
BLOCK: Block = (128, 128)
# The largest number that float8_e4m3fn holds.
_LARGEST = 448.0


def scale_shape(shape: tuple[int, ...], block: Block = BLOCK) -> tuple[int, int]:
    """Return how many blocks cover a matrix along each side; edges may be ragged."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def dequantize_blocks(
    weight_ND: Tensor,
    scale_inv_nd: Tensor,
    block: Block = BLOCK,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply each block of a float8 matrix by its scale."""
    out_ND = torch.empty(weight_ND.shape, dtype=dtype, device=weight_ND.device)
    # Row by row of blocks: the scales spread over a whole matrix would take four times its memory.
    for i, scale_d in enumerate(scale_inv_nd.float()):
        rows = slice(i * block[0], (i + 1) * block[0])
        scale_D = scale_d.repeat_interleave(block[1])[: weight_ND.shape[1]]
        out_ND[rows] = weight_ND[rows].float() * scale_D
    return out_ND


def quantize_blocks(weight_ND: Tensor, block: Block = BLOCK) -> tuple[Tensor, Tensor]:
    """Return a matrix in float8_e4m3fn and the float32 scale of each block, to multiply it by."""
    num_rows, num_columns = weight_ND.shape
    n, d = scale_shape((num_rows, num_columns), block)
    edges = (0, d * block[1] - num_columns, 0, n * block[0] - num_rows)
    tiles = F.pad(weight_ND.float(), edges).view(n, block[0], d, block[1])
    largest_nd = tiles.abs().amax(dim=(1, 3))
    # A block of zeros takes any scale; the floor keeps a tiny block's from rounding to zero.
    smallest = torch.finfo(torch.float32).tiny
    scale_nd = torch.where(largest_nd > 0, (largest_nd / _LARGEST).clamp_min(smallest), 1.0)
    scaled = (tiles / scale_nd[:, None, :, None]).clamp(-_LARGEST, _LARGEST)
    packed = scaled.view(n * block[0], d * block[1])[:num_rows, :num_columns]
    return packed.contiguous().to(torch.float8_e4m3fn), scale_nd
