"""A backend's answer as it comes in: its head, its bytes in time, and every fault as a `Fault`.

Next: faults.py, upstream.py.
"""

import asyncio
import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from moestro.gateway.config import TimeoutConfig
from moestro.gateway.connection import Connection, Fields
from moestro.gateway.faults import Fault

# Beyond it the backend waits until some of it was read.
_MOST_HELD_BYTES = 512 * 1024
# Whoever asks for a year is asked again before somebody has to start the gateway anew for it.
_MOST_RETRY_AFTER_S = 3600.0
_PLAIN_CODINGS = (b"", b"identity")


class Incoming:
    """One answer; `close` ends it at once, whatever is still to come."""

    def __init__(
        self,
        name: str,
        connection: Connection,
        timeouts: TimeoutConfig,
        on_free: Callable[[Connection], None],
    ) -> None:
        """`name` is the backend's; `on_free` gets a connection that may be used again."""
        self.name = name
        self.status = 0
        self.is_over = False
        self._connection = connection
        self._timeouts = timeouts
        self._on_free = on_free
        self._loop = asyncio.get_running_loop()
        self._fields: Fields = {}
        self._pieces: list[bytes] = []
        self._num_held = 0
        self._has_body = False
        self._fault: Fault | None = None
        self._reader: asyncio.Future[None] | None = None
        self._is_closed = False
        self._began_at = self._last_at = self._loop.time()
        self._timer = self._loop.call_at(self._next_look(self._began_at), self._look)

    @property
    def is_stream(self) -> bool:
        """Whether events come."""
        kind = self._fields.get(b"content-type", b"").partition(b";")[0]
        return kind.strip().lower() == b"text/event-stream"

    @property
    def content_type(self) -> str:
        """What its body is said to be, as it was said."""
        return self._fields.get(b"content-type", b"application/json").decode("latin-1")

    @property
    def retry_after_s(self) -> float | None:
        """When the backend wants to be asked again, if it says so."""
        return read_retry_after(self._fields.get(b"retry-after"))

    @property
    def experts(self) -> float | None:
        """How many experts per token it was granted, if it says so: a server of ours does."""
        return read_experts(self._fields.get(b"x-moestro-experts"))

    async def begun(self) -> None:
        """Wait for the head."""
        while not self.status:
            if self._fault is not None:
                raise self._fault
            await self._wait()

    async def read(self) -> bytes:
        """Return the next bytes as soon as there are some; none at the end."""
        while not self._pieces:
            if self._fault is not None:
                raise self._fault
            if self.is_over:
                return b""
            await self._wait()
        pieces = self._pieces
        self._pieces = []
        self._num_held = 0
        # Silence begins when there is nothing more to read.
        self._last_at = self._loop.time()
        self._connection.resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read_whole(self, most_bytes: int) -> bytes:
        """Return all of it; a Fault if it has more bytes than it may."""
        pieces: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > most_bytes:
                raise Fault("garbage", f"{self.name} answered with too many bytes")
            pieces.append(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """End it; a connection whose answer came whole is kept for the next request."""
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        if self._connection.release():
            self._on_free(self._connection)

    def begin(self, status: int, fields: Fields) -> None:
        """Take the head."""
        self.status = status
        self._fields = fields
        if fields.get(b"content-encoding", b"").lower() not in _PLAIN_CODINGS:
            self._end(Fault("garbage", f"{self.name} answers in a coding that was not asked for"))
        self._wake()

    def take(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._pieces.append(data)
        self._has_body = True
        self._last_at = self._loop.time()
        self._num_held += len(data)
        if self._num_held > _MOST_HELD_BYTES:
            self._connection.pause()
        self._wake()

    def finish(self) -> None:
        """Take the good end."""
        self.is_over = True
        self._wake()

    def fail(self, *, is_http: bool) -> None:
        """Take it that nothing more will come."""
        if self.status:
            self._end(Fault("broken", f"{self.name} broke off its answer"))
        elif is_http:
            self._end(Fault("broken", f"{self.name} closed the connection"))
        else:
            # Not shown: its text may repeat what was sent.
            self._end(Fault("garbage", f"{self.name} answered with something other than HTTP"))

    def _end(self, fault: Fault) -> None:
        self.is_over = True
        self._fault = fault
        self._wake()

    async def _wait(self) -> None:
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _deadline(self) -> float:
        timeouts = self._timeouts
        step_s = timeouts.between_tokens_s if self._has_body else timeouts.first_token_s
        return min(self._last_at + step_s, self._began_at + timeouts.whole_s)

    def _next_look(self, now: float) -> float:
        # Never later than a silence that begins now would have to be noticed.
        return min(self._deadline(), now + self._timeouts.between_tokens_s)

    def _look(self) -> None:
        """Look rarely, by one timer for the whole answer instead of one for each piece."""
        if self.is_over:
            return
        now = self._loop.time()
        if self._pieces:
            # It waits for its reader, not for the backend.
            self._last_at = now
        if now < self._deadline():
            self._timer = self._loop.call_at(self._next_look(now), self._look)
            return
        patience_s = self._timeouts.first_token_s
        what = "fell silent in the middle of its answer"
        if not self._has_body:
            what = "began no answer in time" if self.status else f"sent nothing in {patience_s:g} s"
        self._end(Fault("timeout", f"{self.name} {what}"))


def read_retry_after(value: bytes | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, an hour at most.

    None if it makes no sense.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        found = _until(value.decode("latin-1"))
        return None if found is None else min(found, _MOST_RETRY_AFTER_S)
    return min(seconds, _MOST_RETRY_AFTER_S) if 0 <= seconds < math.inf else None


def read_experts(value: bytes | None) -> float | None:
    """Return the number that a header says; None if it makes no sense."""
    if value is None:
        return None
    try:
        experts = float(value)
    except ValueError:
        return None
    return experts if 0 < experts < math.inf else None


def _until(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
