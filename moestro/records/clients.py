"""What is left to clients that all of a host's workers count together: a row each, beside keys'.

What is taken from it, and when, a server says. Next: shared.py, api/bucket.py.
"""

import math
from contextlib import AbstractContextManager

from moestro.api.bucket import Bucket
from moestro.records.shared import SharedFile

# Places of a row's common numbers: the time of use, and two buckets.
_USED, _REQUESTS, _TOKENS = 0, 1, 3


class SharedClient:
    """One client's row, for whoever has the turn."""

    def __init__(
        self, file: SharedFile, place: int, requests: int | None, tokens: int | None
    ) -> None:
        self.requests = (
            None if requests is None else Bucket(requests, file.cells, place + _REQUESTS)
        )
        self.tokens = None if tokens is None else Bucket(tokens, file.cells, place + _TOKENS)
        self._file = file
        self._place = place

    @property
    def num_open(self) -> int:
        """How many of its requests are open, at all workers."""
        return int(self._file.keys.total(self._place, 0))

    def change_open(self, change: int) -> None:
        """Count requests of this worker that open, or that end."""
        own = self._file.keys.own(self._place)
        self._file.cells[own] = max(0.0, self._file.cells[own] + change)


class SharedClients:
    """Clients by identity."""

    def __init__(self, file: SharedFile) -> None:
        self._file = file

    def turn(self) -> AbstractContextManager[None]:
        """Keep other workers from changing any."""
        return self._file.lock

    def find(
        self, identity: str, requests: int | None, tokens: int | None, now: float
    ) -> SharedClient:
        """Return a client, a new one with so many requests and tokens a minute."""
        name, rows = f"client {identity}", self._file.keys
        place = rows.find(name)
        if place is None:
            place = rows.add(name)
            self._file.cells[place + _REQUESTS] = self._file.cells[place + _TOKENS] = math.inf
        self._file.cells[place + _USED] = now
        return SharedClient(self._file, place, requests, tokens)
