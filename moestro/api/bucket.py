"""What is left of a rate: a token bucket, for keys and for clients, in one process or in several.

Pure arithmetic on moments that the caller gives. Next: server/limits.py, records/meters.py.
"""

from typing import Protocol

_MINUTE_S = 60.0


class Cells(Protocol):
    """Numbers by place: a list, or memory that processes share."""

    def __getitem__(self, place: int, /) -> float:
        """Return a number."""

    def __setitem__(self, place: int, value: float, /) -> None:
        """Write a number."""


class Bucket:
    """Starts full with `per_minute` and refills at that rate; a debt is paid off by waiting.

    Its level and the moment of that stand in two cells; an infinite level is a full one.
    """

    def __init__(self, per_minute: int, cells: Cells, place: int = 0) -> None:
        self.per_minute = per_minute
        self._cells = cells
        self._place = place

    @classmethod
    def full(cls, per_minute: int, now: float) -> "Bucket":
        """Return one of which nothing was taken yet."""
        return cls(per_minute, [float(per_minute), now])

    def level(self, now: float) -> float:
        """Return what is left, below zero where more was taken than there was."""
        level, at = self._cells[self._place], self._cells[self._place + 1]
        refilled = max(0.0, now - at) * self.per_minute / _MINUTE_S
        return min(float(self.per_minute), level + refilled)

    def take(self, amount: float, now: float) -> None:
        """Take some out, if need be more than there is; less than nothing puts some back."""
        self._cells[self._place] = min(float(self.per_minute), self.level(now) - amount)
        self._cells[self._place + 1] = max(now, self._cells[self._place + 1])

    def wait_s(self, amount: float, now: float) -> float:
        """Return the seconds until at least `amount` is left."""
        return max(0.0, amount - self.level(now)) * _MINUTE_S / self.per_minute

    def full_in_s(self, now: float) -> float:
        """Return the seconds until nothing is missing."""
        return self.wait_s(self.per_minute, now)
