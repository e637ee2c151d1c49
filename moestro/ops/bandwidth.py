"""How fast this machine reads memory and multiplies whole numbers, measured: the other limits.

Next: machine.py for floating-point products.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

# Many times what a last-level cache holds.
_READ_BYTES = 512 * 2**20
_INT8_SIZES = (256, 2048)
_SLOW_INT8_OPS = 1e10
_REPEATS = 5


def measure_read_bandwidth(num_bytes: int = _READ_BYTES) -> float:
    """Stream through memory with all of torch's threads; return bytes per second.

    The better of two ways, each the median of a few: which one comes closer to the memory's limit
    depends on the processor.
    """
    # Written by a draw, not by a fill: a page of zeros may be no page at all.
    memory = torch.empty(num_bytes // 4).uniform_()
    ways: tuple[Callable[[], object], ...] = (memory.sum, memory.aminmax)
    return memory.nbytes / min(_median_seconds(way) for way in ways)


def measure_int8_ops() -> float | None:
    """Return int8 operations per second through torch's own product, or None if it has none."""
    ops = 0.0
    # Small ones first: without hardware support large ones take seconds each.
    for size in _INT8_SIZES:
        left = torch.randint(-100, 100, (size, size), dtype=torch.int8)
        try:
            seconds = _median_seconds(partial(torch._int_mm, left, left))
        except (RuntimeError, NotImplementedError):
            return None
        ops = 2 * size**3 / seconds
        if ops < _SLOW_INT8_OPS:
            break
    return ops


def _median_seconds(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    # The first one warms up.
    return statistics.median(seconds[1:])
