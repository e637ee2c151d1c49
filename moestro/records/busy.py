"""Backends as all workers see them: requests under way, and the numbers of a breaker.

The names are a gateway's; what its numbers mean, only it knows. Next: shared.py.
"""

import time
from collections.abc import Callable

from moestro.records.shared import SharedFile

NUM_NUMBERS = 7
Numbers = tuple[float, ...]
_NO_NUMBERS: Numbers = (0.0,) * NUM_NUMBERS


class BusyBackends:
    """Counts and numbers by a backend's name, shared by all workers."""

    def __init__(self, file: SharedFile) -> None:
        self._file = file
        self._rows = file.backends

    def try_enter(self, backend: str, limit: int) -> bool:
        """Count a request that begins, unless `limit` of them are under way.

        Far from the limit nobody waits for the lock: whoever holds it may be without a processor.
        """
        return self._enter_freely(backend, limit) or self._enter_in_turn(backend, limit)

    def leave(self, backend: str) -> None:
        """Count one that has ended: nobody else writes there, and its row is in use."""
        place = self._rows.find(backend)
        if place is not None:
            own = self._rows.own(place)
            self._file.cells[own] = max(0.0, self._file.cells[own] - 1)

    def num_in_flight(self, backend: str) -> int:
        """Return how many are under way, at a glance: nobody waits for it."""
        place = self._rows.find(backend)
        return 0 if place is None else int(self._rows.total(place, 0))

    def read_numbers(self, backend: str) -> Numbers:
        """Return seven numbers at a glance, zeros at first: some may be newer than others."""
        place = self._rows.find(backend)
        return _NO_NUMBERS if place is None else self._numbers(place)

    def count_number(self, backend: str, number: int) -> None:
        """Add one to one of them; of two workers that do so at once, one may do so in vain."""
        place = self._rows.find(backend)
        if place is not None:
            self._file.cells[place + 1 + number] += 1

    def change_numbers(self, backend: str, change: Callable[[Numbers], Numbers]) -> None:
        """Replace them by what follows from them; nobody else changes them meanwhile."""
        with self._file.lock:
            place = self._place(backend)
            before = self._numbers(place)
            after = change(before)
            if after == before:
                return
            self._file.cells[place] = time.monotonic()
            for cell, number in enumerate(after, place + 1):
                self._file.cells[cell] = number

    def _enter_freely(self, backend: str, limit: int) -> bool:
        place = self._rows.find(backend)
        # Where each of the others may enter at this very moment too.
        if place is None or self._rows.total(place, 0) + self._file.num_workers > limit:
            return False
        self._file.cells[place] = time.monotonic()
        own = self._rows.own(place)
        self._file.cells[own] += 1
        if self._rows.total(place, 0) <= limit:
            return True
        self._file.cells[own] -= 1
        return False

    def _enter_in_turn(self, backend: str, limit: int) -> bool:
        with self._file.lock:
            place = self._place(backend)
            if self._rows.total(place, 0) >= limit:
                return False
            self._file.cells[place] = time.monotonic()
            self._file.cells[self._rows.own(place)] += 1
            return True

    def _numbers(self, place: int) -> Numbers:
        return tuple(self._file.cells[place + 1 : place + 1 + NUM_NUMBERS])

    def _place(self, backend: str) -> int:
        place = self._rows.find(backend)
        return self._rows.add(backend) if place is None else place
