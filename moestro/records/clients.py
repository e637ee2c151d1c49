"""What is left to clients that all of a host's workers count together: a row each, beside keys'.

What is taken from it, and when, a server says. Next: shared.py.
"""

import math
from contextlib import AbstractContextManager

from moestro.records.shared import SharedFile

# Places of a row's common numbers: the time of use, and two levels with their moments.
_USED, _REQUESTS, _TOKENS = 0, 1, 3


class ClientRow:
    """One client's numbers, for whoever has the turn."""

    def __init__(self, file: SharedFile, place: int) -> None:
        self.cells = file.cells
        self.requests_at = place + _REQUESTS
        self.tokens_at = place + _TOKENS
        self._rows = file.keys
        self._place = place

    @property
    def num_open(self) -> int:
        """How many of its requests are open, at all workers."""
        return int(self._rows.total(self._place, 0))

    def change_open(self, change: int) -> None:
        """Count requests of this worker that open, or that end."""
        own = self._rows.own(self._place)
        self.cells[own] = max(0.0, self.cells[own] + change)


class ClientRows:
    """Clients by identity."""

    def __init__(self, file: SharedFile) -> None:
        self._file = file

    def turn(self) -> AbstractContextManager[None]:
        """Keep other workers from changing any."""
        return self._file.lock

    def find(self, identity: str, now: float) -> ClientRow:
        """Return a client's row; a new one's levels are infinite."""
        name, rows = f"client {identity}", self._file.keys
        place = rows.find(name)
        if place is None:
            place = rows.add(name)
            self._file.cells[place + _REQUESTS] = self._file.cells[place + _TOKENS] = math.inf
        self._file.cells[place + _USED] = now
        return ClientRow(self._file, place)
