"""What this machine's arithmetic can do, measured: MFU's yardstick and the judge between dtypes.

Next: memory.py, train/run.py.
"""

import statistics
import time
from typing import NamedTuple

import torch

_SIZE = {"cpu": 1024, "cuda": 8192}
_REPEATS = 5


class Peak(NamedTuple):
    """The most that matrix products reach here, in operations per second, and in which dtype."""

    dtype: torch.dtype
    flops: float


def default_device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def measure_flops(dtype: torch.dtype, device: str) -> float:
    """Time square matrix products and return operations per second, the median of a few."""
    size = _SIZE[torch.device(device).type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [_time_product(a, b) for _ in range(_REPEATS + 1)][1:]
    return 2 * size**3 / statistics.median(times)


def measure_peak(device: str) -> Peak:
    """Measure what torch multiplies fastest: bfloat16 where hardware does it, else float32."""
    full = Peak(torch.float32, measure_flops(torch.float32, device))
    # A small product first: without hardware support bfloat16 can be a hundred times slower.
    a = torch.randn(128, 128, device=device)
    slow = _time_product(a.bfloat16(), a.bfloat16()), _time_product(a.bfloat16(), a.bfloat16())
    fast = _time_product(a, a), _time_product(a, a)
    if min(slow) > 4 * min(fast):
        return full
    half = Peak(torch.bfloat16, measure_flops(torch.bfloat16, device))
    return half if half.flops > 1.2 * full.flops else full


def fastest_dtype(device: str) -> torch.dtype:
    """Return bfloat16 where torch multiplies it faster than float32, else float32."""
    return measure_peak(device).dtype


def _time_product(a: torch.Tensor, b: torch.Tensor) -> float:
    _synchronize(a)
    start = time.perf_counter()
    torch.mm(a, b)
    _synchronize(a)
    return time.perf_counter() - start


def _synchronize(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
