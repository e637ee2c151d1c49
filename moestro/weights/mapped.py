"""Memory of mapped files, given back as soon as it has been read.

A loader that packs a checkpoint would otherwise hold it twice: packed, and as the pages of the
mapped file that it touched. Knows files, not what lies in them. Next: packed.py.
"""

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

_MAPS = Path("/proc/self/maps")


class MappedFiles:
    """Where this process maps files. Without Linux's list of it, nothing is ever given back."""

    def __init__(self) -> None:
        self._spans: dict[str, list[range]] = {}
        self._advise = ctypes.CDLL(None).madvise

    def release(self, paths: Iterable[Path]) -> None:
        """Give back the pages of files that nobody wrote to; used again, they are read again."""
        names = {str(path.resolve()) for path in paths}
        if not names <= self._spans.keys():
            self._spans = _read_spans()
        for span in (span for name in names for span in self._spans.get(name, [])):
            size = ctypes.c_size_t(len(span))
            self._advise(ctypes.c_void_p(span.start), size, mmap.MADV_DONTNEED)


def _read_spans() -> dict[str, list[range]]:
    """List this process's mappings of each file."""
    spans: dict[str, list[range]] = {}
    if not _MAPS.exists():
        return spans
    for line in _MAPS.read_text().splitlines():
        place, *_, name = line.split(maxsplit=5)
        if name.startswith("/"):
            first, last = place.split("-")
            spans.setdefault(name, []).append(range(int(first, 16), int(last, 16)))
    return spans
