"""Numbers that only grow, of all of a host's workers together; those of dead ones stay.

Each worker writes a column of its own, so that nobody waits for anybody. What the numbers of a row
mean, only a gateway knows; but for the ledger's. Next: shared.py.
"""

from collections.abc import Sequence

from moestro.records.shared import SharedFile

NUM_COUNTS = 6
_LEDGER = "the ledger"
# The ledger's numbers: records taken, and those written or lost by its thread; how many of them
# were lost as they came, by its thread, and with a worker that died; and how often the process that
# writes was started again. Each has one writer.
_TAKEN, _SETTLED, _TURNED_AWAY, _GIVEN_UP, _BURIED, _RESTARTS = range(6)


class SharedCounts:
    """Up to six numbers by name."""

    def __init__(self, file: SharedFile) -> None:
        self._file = file
        self._rows = file.counts

    @property
    def began_at(self) -> float:
        """Since when they are counted, in seconds since 1970."""
        return self._file.began_at

    def count(self, name: str, amounts: Sequence[float]) -> None:
        """Add to a name's numbers, the first ones of them; for one thread of a worker."""
        own = self._rows.own(self._rows.ensure(name))
        for cell, amount in enumerate(amounts, own):
            if amount:
                self._file.cells[cell] += amount

    def counted(self, name: str) -> tuple[float, ...]:
        """Return a name's six numbers."""
        place = self._rows.ensure(name)
        return tuple(self._rows.total(place, number) for number in range(NUM_COUNTS))


class LedgerCounts:
    """What became of records, so that what a killed worker had in its queue is counted too."""

    def __init__(self, file: SharedFile) -> None:
        self._counts = SharedCounts(file)

    @property
    def num_lost(self) -> int:
        """How many were lost, by all workers since the server's start."""
        numbers = self._counts.counted(_LEDGER)
        return int(sum(numbers[each] for each in (_TURNED_AWAY, _GIVEN_UP, _BURIED)))

    @property
    def num_restarts(self) -> int:
        """How often the process that writes was started again."""
        return int(self._counts.counted(_LEDGER)[_RESTARTS])

    def note_restart(self) -> None:
        """Count that it is started again; for the supervisor."""
        self._add(_RESTARTS, 1)

    def take(self) -> None:
        """Count one that waits from now on; in the worker's own thread, as the next one."""
        self._add(_TAKEN, 1)

    def turn_away(self) -> None:
        """Count one that was lost as it came."""
        self._add(_TURNED_AWAY, 1)

    def settle(self, num: int) -> None:
        """Count some that wait no more; in the ledger's thread, as the next one."""
        self._add(_SETTLED, num)

    def give_up(self, num: int) -> None:
        """Count some that wait no more and were lost."""
        self._add(_GIVEN_UP, num)
        self._add(_SETTLED, num)

    def _add(self, number: int, amount: int) -> None:
        self._counts.count(_LEDGER, [0] * number + [amount])


def bury_ledger(file: SharedFile) -> int:
    """Count as lost what a dead worker had in its queue, and return how many; `file` is its own.

    At most: those of a batch that was written as it died are among them.
    """
    counts = SharedCounts(file)
    own = file.counts.own(counts._rows.ensure(_LEDGER))
    num_gone = int(file.cells[own + _TAKEN] - file.cells[own + _SETTLED])
    counts.count(_LEDGER, [0, num_gone, 0, 0, num_gone])
    return num_gone
