"""What is left to each client: a bounded table of them, or one that processes share.

Knows no HTTP. Next: limits.py, api/bucket.py.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from moestro.api.bucket import Bucket


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
