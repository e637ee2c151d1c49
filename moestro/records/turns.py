"""Whose turn it is to take the next connection: a worker's that has no more of them than others.

Knows no sockets. Next: shared.py; cli/doorman.py.
"""

from moestro.records.shared import SharedFile

# No backend has such a name: theirs have a number behind a slash.
_ROW = "connections"


class Turns:
    """How many connections each worker of a host holds."""

    def __init__(self, file: SharedFile) -> None:
        self._file = file
        self._rows = file.backends
        self.note(0)

    def note(self, num: int) -> None:
        """Say how many this worker holds."""
        place = self._rows.ensure(_ROW)
        # Nobody else writes there, and nobody adds to what was read.
        self._file.cells[self._rows.own(place)] = num

    def is_mine(self) -> bool:
        """Tell whether this worker holds no more than its share."""
        place = self._rows.find(_ROW)
        if place is None:
            return True
        own = self._file.cells[self._rows.own(place)]
        return own * self._file.num_workers <= self._rows.total(place, 0)
