"""Backends as all workers see them: requests under way, and the numbers of a breaker.

The names are a gateway's; what its numbers mean, only it knows. Next: shared.py.
"""

import time
from collections.abc import Sequence

from moestro.records.shared import SharedFile

NUM_NUMBERS = 7


class BusyBackends:
    """Counts and numbers by a backend's name, shared by all workers."""

    is_shared = True

    def __init__(self, file: SharedFile) -> None:
        self._file = file
        self._rows = file.backends

    def try_enter(self, backend: str, limit: int) -> bool:
        """Count a request that begins, unless `limit` of them are under way."""
        with self._file.lock:
            place = self._place(backend)
            if self._rows.total(place, 0) >= limit:
                return False
            self._file.cells[place] = time.monotonic()
            self._file.cells[self._rows.own(place)] += 1
            return True

    def leave(self, backend: str) -> None:
        """Count one that has ended."""
        with self._file.lock:
            own = self._rows.own(self._place(backend))
            self._file.cells[own] = max(0.0, self._file.cells[own] - 1)

    def num_in_flight(self, backend: str) -> int:
        """Return how many are under way."""
        with self._file.lock:
            return int(self._rows.total(self._place(backend), 0))

    def read_numbers(self, backend: str) -> tuple[float, ...]:
        """Return seven numbers as one writer left them, zeros at first."""
        with self._file.lock:
            first = self._place(backend) + 1
            return tuple(self._file.cells[first : first + NUM_NUMBERS])

    def write_numbers(self, backend: str, numbers: Sequence[float]) -> None:
        """Replace them; of two writers at once, one is lost."""
        with self._file.lock:
            place = self._place(backend)
            self._file.cells[place] = time.monotonic()
            for cell, number in enumerate(numbers, place + 1):
                self._file.cells[cell] = number

    def _place(self, backend: str) -> int:
        place = self._rows.find(backend)
        return self._rows.add(backend) if place is None else place
