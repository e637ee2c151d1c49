"""How much a client has left: token buckets, and a bounded table of clients.

Pure arithmetic on moments that the caller gives. Knows no HTTP. Next: limits.py.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
        """Take some out, if need be more than there is."""
        self._cells[self._place] = self.level(now) - amount
        self._cells[self._place + 1] = max(now, self._cells[self._place + 1])

    def wait_s(self, amount: float, now: float) -> float:
        """Return the seconds until at least `amount` is left."""
        return max(0.0, amount - self.level(now)) * _MINUTE_S / self.per_minute

    def full_in_s(self, now: float) -> float:
        """Return the seconds until nothing is missing."""
        return self.wait_s(self.per_minute, now)


class Client(Protocol):
    """What is left to one client, and how many of its requests are open."""

    @property
    def requests(self) -> Bucket | None:
        """What is left of its requests, None without a limit."""

    @property
    def tokens(self) -> Bucket | None:
        """What is left of its tokens, None without a limit."""

    @property
    def num_open(self) -> int:
        """How many of its requests are open."""

    def change_open(self, change: int) -> None:
        """Count requests that open, or that end."""


@dataclass
class OwnClient:
    """A client of this process."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    num_open: int = 0

    def change_open(self, change: int) -> None:
        """Count requests that open, or that end."""
        self.num_open += change


class ClientTable(Protocol):
    """Clients by identity. Whoever looks at one and takes from it does so in one turn."""

    def turn(self) -> AbstractContextManager[None]:
        """Keep others from changing any."""

    def find(self, identity: str, requests: int | None, tokens: int | None, now: float) -> Client:
        """Return a client, a new one with so many requests and tokens a minute."""


class OwnClients:
    """This process' clients, at most `most` of them beside those with open requests.

    The one not seen for longest is forgotten first, whatever it owed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._clients: OrderedDict[str, OwnClient] = OrderedDict()
        self.turn: Callable[[], AbstractContextManager[None]] = nullcontext

    def __len__(self) -> int:
        return len(self._clients)

    def find(
        self, identity: str, requests: int | None, tokens: int | None, now: float
    ) -> OwnClient:
        """Return a client, from now on the one seen last; forget another if there are too many."""
        client = self._clients.get(identity)
        if client is not None:
            self._clients.move_to_end(identity)
            return client
        client = OwnClient(
            requests=None if requests is None else Bucket.full(requests, now),
            tokens=None if tokens is None else Bucket.full(tokens, now),
        )
        self._clients[identity] = client
        if len(self._clients) > self._most:
            others = (name for name, each in self._clients.items() if each is not client)
            idle = next((name for name in others if self._clients[name].num_open == 0), None)
            if idle is not None:
                del self._clients[idle]
        return client
