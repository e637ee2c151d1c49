"""How much a client has left: token buckets, and a bounded table of clients.

Pure arithmetic on moments that the caller gives. Knows no HTTP. Next: limits.py.
"""

from collections import OrderedDict
from dataclasses import dataclass

_MINUTE_S = 60.0


class Bucket:
    """Starts full with `per_minute` and refills at that rate; a debt is paid off by waiting."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """Return what is left, below zero where more was taken than there was."""
        refilled = max(0.0, now - self._at) * self.per_minute / _MINUTE_S
        self._level = min(float(self.per_minute), self._level + refilled)
        self._at = max(self._at, now)
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take some out, if need be more than there is."""
        self._level = self.level(now) - amount

    def wait_s(self, amount: float, now: float) -> float:
        """Return the seconds until at least `amount` is left."""
        return max(0.0, amount - self.level(now)) * _MINUTE_S / self.per_minute

    def full_in_s(self, now: float) -> float:
        """Return the seconds until nothing is missing."""
        return self.wait_s(self.per_minute, now)


@dataclass
class Client:
    """What is left to one client, and how many of its requests are open."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    num_open: int = 0


class Clients:
    """Clients by identity, at most `most` of them beside those with open requests.

    The one not seen for longest is forgotten first, whatever it owed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._clients: OrderedDict[str, Client] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, identity: str) -> Client | None:
        """Return a client that is known, from now on the one seen last."""
        client = self._clients.get(identity)
        if client is not None:
            self._clients.move_to_end(identity)
        return client

    def add(self, identity: str, client: Client) -> Client:
        """Remember a client and forget another if there are too many."""
        self._clients[identity] = client
        if len(self._clients) > self._most:
            idle = (name for name, each in self._clients.items() if each.num_open == 0)
            del self._clients[next(idle)]
        return client
