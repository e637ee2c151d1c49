"""How much memory there is, and how much of it is free; what a training process asks of its own.

Next: engine/sizes.py, train/run.py.
"""

import ctypes
import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
# A container's own limit, as it sees it: of control groups' second version, and of their first.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def physical_bytes() -> int:
    """Return how much memory this machine has, or its container may take."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limits()])


def free_bytes(device: torch.device) -> int:
    """Return how much memory a device can still give; what merely caches files counts as free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_available_bytes(), *_container_limits()])


def keep_freed_memory() -> None:
    """Let this process keep what it frees: a step frees and takes the same arrays again and again.

    Fresh pages cost a quarter of a step. Only glibc has these settings; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _available_bytes() -> int:
    # Not SC_AVPHYS_PAGES: a checkpoint that was just read fills memory with its file's pages.
    lines = _MEMINFO.read_text().splitlines() if _MEMINFO.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else physical_bytes()


def _container_limits() -> list[int]:
    texts = [path.read_text().strip() for path in _LIMITS if path.exists()]
    return [int(text) for text in texts if text.isdecimal()]
