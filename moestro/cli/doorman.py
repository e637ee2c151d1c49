"""Takes connections from a port that several workers share, each worker its share of them.

The system wakes all that wait at a port, and whoever comes first takes every connection there is:
16 that come at once may all end up with one of two workers. Here a worker takes one at a time, and
none while it has more than its share, unless nobody else comes. Knows no HTTP. Next: serving.py.
"""

import asyncio
import logging
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

log = logging.getLogger(__name__)

_REST_S = 0.001
# Whoever's turn it is may be busy for a moment, or gone.
_MOST_RESTS = 10
# While the system has no room for another connection.
_FULL_REST_S = 1.0


class Shares(Protocol):
    """How many connections each worker holds."""

    def note(self, num: int) -> None:
        """Say how many this one holds."""

    def is_mine(self) -> bool:
        """Tell whether the next one is this worker's."""


class Doorman:
    """Gives connections to `take` until it is closed; in an event loop."""

    def __init__(
        self,
        listener: socket.socket,
        shares: Shares,
        take: Callable[[socket.socket], Awaitable[object]],
    ) -> None:
        self._listener = listener
        self._shares = shares
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._glance = select.poll()
        self._glance.register(listener, select.POLLIN)
        self._num_rests = 0
        self._resting: asyncio.TimerHandle | None = None
        self._taking: set[asyncio.Future[object]] = set()
        listener.setblocking(False)
        self._loop.add_reader(listener, self._look)

    def close(self) -> None:
        """Take no more."""
        self._loop.remove_reader(self._listener)
        if self._resting is not None:
            self._resting.cancel()

    def _look(self) -> None:
        if not self._shares.is_mine() and self._num_rests < _MOST_RESTS:
            self._num_rests += 1
            self._rest(_REST_S)
            return
        self._num_rests = 0
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("no connection can be taken now: %s", error.strerror)
            self._rest(_FULL_REST_S)
            return
        connection.setblocking(False)
        taking = asyncio.ensure_future(self._take(connection))
        self._taking.add(taking)
        taking.add_done_callback(self._note_taken)

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resting = self._loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._resting = None
        self._loop.add_reader(self._listener, self._look)
        if self._glance.poll(0):
            self._look()
        else:
            # Somebody else has taken it.
            self._num_rests = 0

    def _note_taken(self, taking: "asyncio.Future[object]") -> None:
        self._taking.discard(taking)
        if not taking.cancelled() and taking.exception() is not None:
            # Of a connection that broke off, or spoke no TLS; it is closed.
            log.debug("a connection came to nothing: %s", type(taking.exception()).__name__)
