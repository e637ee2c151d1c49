"""Memory of mapped files, given back as soon as it has been read.

A loader that packs a checkpoint would otherwise hold it twice: packed, and as the pages of the
mapped file that it touched. Knows addresses, not what lies there. Next: packed.py.
"""

import ctypes
import mmap
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")


class MappedFiles:
    """The mappings of some files. Without Linux's list of them, nothing is ever given back."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._spans: list[range] = []

    def release(self, tensor: Tensor) -> None:
        """Give back the whole pages in which a mapped tensor lies; used again, they are read again.

        Memory that is no file's is left alone: it would be lost.
        """
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if not tensor.nbytes or not self._is_mapped(start, end):
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        size = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0:
            advise = ctypes.CDLL(None).madvise
            advise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)

    def _is_mapped(self, start: int, end: int) -> bool:
        if not any(start in span and end - 1 in span for span in self._spans):
            # Files are opened one after the other.
            self._spans = list(self._read_spans())
        return any(start in span and end - 1 in span for span in self._spans)

    def _read_spans(self) -> list[range]:
        if not _MAPS.exists():
            return []
        spans = []
        for line in _MAPS.read_text().splitlines():
            if line.endswith(self._suffix):
                first, last = line.split(maxsplit=1)[0].split("-")
                spans.append(range(int(first, 16), int(last, 16)))
        return spans
