"""What all workers of a gateway must know of its backends: who is busy, and who is left alone; and
what they count together.

A worker alone keeps it in its own memory. Next: health.py, queue.py.
"""

import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Protocol

from moestro.gateway.breaker import Breaker

_MOST_CONVERSATIONS = 100_000
_WINDOW = 256


class Shared(Protocol):
    """Places and breakers by a backend's row, counts by any name; every method returns at once."""

    def try_enter(self, backend: str, limit: int) -> bool:
        """Count a request that begins, unless `limit` of them are under way."""

    def leave(self, backend: str) -> None:
        """Count one that has ended."""

    def num_in_flight(self, backend: str) -> int:
        """Return how many are under way."""

    def read_breaker(self, backend: str) -> Breaker:
        """Return a backend's breaker, at a glance."""

    def change_breaker(self, backend: str, change: Callable[[Breaker], Breaker]) -> None:
        """Replace it by what follows from it; nobody else changes it meanwhile."""

    def count_good(self, backend: str) -> None:
        """Count a success in it, without any turn: of several at once, some may not count."""

    @property
    def began_at(self) -> float:
        """Since when is counted, in seconds since 1970."""

    def count(self, name: str, amounts: Sequence[float]) -> None:
        """Add to a name's numbers, of which there are up to six; they only grow."""

    def counted(self, name: str) -> tuple[float, ...]:
        """Return a name's six numbers."""

    def note(self, name: str, value: float) -> None:
        """Add to a name's latest values."""

    def latest(self, name: str) -> Sequence[float]:
        """Return a name's latest values, in no order."""


class Conversations(Protocol):
    """Which model answers a conversation, by its hash."""

    def find(self, conversation: str) -> str | None:
        """Return its model, None if it is new or too long ago."""

    def keep(self, conversation: str, model: str) -> None:
        """Remember its model from now on."""


class Alone:
    """The state of a gateway with one worker."""

    def __init__(self) -> None:
        self._in_flight: Counter[str] = Counter()
        self._breakers: dict[str, Breaker] = {}
        self._counts: defaultdict[str, tuple[float, ...]] = defaultdict(lambda: (0.0,) * 6)
        self._latest: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOW))
        self.began_at = time.time()

    def try_enter(self, backend: str, limit: int) -> bool:
        """Count a request that begins, unless `limit` of them are under way."""
        if self._in_flight[backend] >= limit:
            return False
        self._in_flight[backend] += 1
        return True

    def leave(self, backend: str) -> None:
        """Count one that has ended."""
        self._in_flight[backend] -= 1

    def num_in_flight(self, backend: str) -> int:
        """Return how many are under way."""
        return self._in_flight[backend]

    def read_breaker(self, backend: str) -> Breaker:
        """Return a backend's breaker."""
        return self._breakers.get(backend) or Breaker()

    def change_breaker(self, backend: str, change: Callable[[Breaker], Breaker]) -> None:
        """Replace it by what follows from it."""
        self._breakers[backend] = change(self.read_breaker(backend))

    def count_good(self, backend: str) -> None:
        """Count a success in it."""
        breaker = self.read_breaker(backend)
        self._breakers[backend] = breaker._replace(num_good=breaker.num_good + 1)

    def count(self, name: str, amounts: Sequence[float]) -> None:
        """Add to a name's numbers, of which there are up to six; they only grow."""
        pairs = zip_longest(self._counts[name], amounts, fillvalue=0.0)
        self._counts[name] = tuple(before + amount for before, amount in pairs)

    def counted(self, name: str) -> tuple[float, ...]:
        """Return a name's six numbers."""
        return self._counts[name]

    def note(self, name: str, value: float) -> None:
        """Add to a name's latest values."""
        self._latest[name].append(value)

    def latest(self, name: str) -> Sequence[float]:
        """Return a name's latest values."""
        return self._latest[name]


class RecentConversations:
    """Conversations in memory: the latest ones, each for some time after its last turn."""

    def __init__(self, keep_s: float, clock: Callable[[], float]) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def find(self, conversation: str) -> str | None:
        """Return its model, None if it is new or too long ago."""
        model, until = self._known.get(conversation, ("", 0.0))
        return model if self._clock() < until else None

    def keep(self, conversation: str, model: str) -> None:
        """Remember its model from now on."""
        self._known[conversation] = (model, self._clock() + self._keep_s)
        self._known.move_to_end(conversation)
        if len(self._known) > _MOST_CONVERSATIONS:
            self._known.popitem(last=False)
