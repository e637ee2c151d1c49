"""Who waits for a place in the batch, by rank: first answers apart from clients' further ones.

Of a thousand that wait only those are looked at who may get a place. Knows no blocks and no limits.
Next: scheduler.py.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain, islice

from moestro.engine.request import Sequence


class Waiting:
    """Two lines, each with the best in front."""

    def __init__(self) -> None:
        self._firsts: list[Sequence] = []
        self._further: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._firsts) + len(self._further)

    def __iter__(self) -> Iterator[Sequence]:
        """Yield all that wait, in no order."""
        return chain(self._firsts, self._further)

    def add(self, sequence: Sequence) -> None:
        """Let one wait."""
        insort(self._line(sequence), sequence, key=rank)

    def remove(self, sequence: Sequence) -> None:
        """Let one that waits go."""
        line = self._line(sequence)
        # Further answers may share a rank with others' first ones, so the place must be looked at.
        del line[line.index(sequence, bisect_left(line, rank(sequence), key=rank))]

    def best(self, num_places: int, num_further: int) -> Iterator[Sequence]:
        """Yield the next for so many places, by rank; only `num_further` may be further answers.

        Of equal rank, a first answer goes first.
        """
        firsts, further = self._firsts[:num_places], self._further[: max(num_further, 0)]
        return islice(heapq.merge(firsts, further, key=rank), num_places)

    def _line(self, sequence: Sequence) -> list[Sequence]:
        return self._further if sequence.is_further else self._firsts


def rank(sequence: Sequence) -> tuple[int, int, int]:
    """Return what sequences are ordered by: the lowest goes first."""
    return sequence.request.priority, sequence.arrival, sequence.choice
