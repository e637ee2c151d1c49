"""The latest values of a name, of all of a host's workers together: each keeps its own in a ring.

What the values are, only a gateway knows. Next: shared.py.
"""

from moestro.records.shared import SharedFile


class SharedLatest:
    """Values by name; nobody waits to add one."""

    def __init__(self, file: SharedFile) -> None:
        self._file = file
        self._rows = file.latest

    def note(self, name: str, value: float) -> None:
        """Add a value; for one thread of a worker."""
        own, cells = self._rows.own(self._rows.ensure(name)), self._file.cells
        number = int(cells[own])
        cells[own + 1 + number % (self._rows.num_own - 1)] = value
        cells[own] = number + 1

    def latest(self, name: str) -> list[float]:
        """Return all workers' latest values, in no order."""
        place = self._rows.find(name)
        if place is None:
            return []
        return [
            value for number, *values in self._rows.owned(place) for value in values[: int(number)]
        ]
