"""How many rows a matrix product needs so that a row's bits do not depend on its neighbours.

Libraries take other kernels for few rows than for many, and those sum in another order: a token
computed alone would differ in its last bits from the same token in a batch. Products whose rows are
a multiple of a small number take kernels that agree. Which number, depends on library, processor
and threads, so it is measured. Native kernels need none of it: their multiple is 1.
Next: paged.py, engine/runner.py.

Shapes: M rows, H heads, D inner width, N columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_CANDIDATES = (1, 4, 8, 16, 32)
_MOST_ROWS = 64
_MOST_COLUMNS = 512


@dataclass(frozen=True)
class RowMultiples:
    """To which multiple a batch's tokens are filled up, and to which attention's queries."""

    tokens: int = 1
    queries: int = 1


def measure_row_multiple(
    shapes: Iterable[tuple[int, int, int]], dtype: torch.dtype, device: str = "cpu"
) -> int | None:
    """Return the least multiple of rows at which torch keeps a row's bits in all products.

    Their weights are (H, N, D): H is 1 for a plain matrix, the number of heads for one matrix per
    head. None if even the largest candidate does not.
    """
    generator = torch.Generator().manual_seed(0)
    cases = []
    for heads, columns, inner in sorted(set(shapes)):
        size = (heads, min(columns, _MOST_COLUMNS), inner)
        x_MHD = torch.randn(_MOST_ROWS, heads, inner, generator=generator)
        weight_HND = torch.randn(size, generator=generator)
        cases.append((x_MHD.to(device, dtype), weight_HND.to(device, dtype)))
    return next(
        (
            multiple
            for multiple in _CANDIDATES
            if all(_keeps_bits(x_MHD, weight_HND, multiple) for x_MHD, weight_HND in cases)
        ),
        None,
    )


def round_up(number: int, multiple: int) -> int:
    """Return the least multiple that is not below a number."""
    return -(-number // multiple) * multiple


def _keeps_bits(x_MHD: Tensor, weight_HND: Tensor, multiple: int) -> bool:
    whole_MHN = _multiply(x_MHD, weight_HND)
    counts = (*range(multiple, 6 * multiple, multiple), 8 * multiple)
    return all(
        torch.equal(_multiply(x_MHD[:count], weight_HND), whole_MHN[:count])
        for count in counts
        if count <= len(x_MHD)
    )


def _multiply(x_MHD: Tensor, weight_HND: Tensor) -> Tensor:
    if len(weight_HND) == 1:
        return F.linear(x_MHD, weight_HND[0])
    return torch.einsum("mhd,hnd->mhn", x_MHD, weight_HND)
