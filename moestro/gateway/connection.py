"""One connection to a server, in HTTP/1.1: a request out, and its answer's parts as they come in.

One request at a time. Knows how an answer is framed, not whose it is. Next: incoming.py.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools

# Of a head, of trailers, or of whatever else comes between two pieces of a body.
_MOST_HEAD_BYTES = 64 * 1024

Fields = dict[bytes, bytes]


class Taker(Protocol):
    """Takes an answer's parts."""

    @property
    def is_over(self) -> bool:
        """Whether it is whole, or has failed."""

    def begin(self, status: int, fields: Fields) -> None:
        """Take its head; names are in lower case."""

    def take(self, data: bytes) -> None:
        """Take a piece of its body."""

    def finish(self) -> None:
        """Take its good end."""

    def fail(self, *, is_http: bool) -> None:
        """Take it that nothing more will come."""


class Connection(asyncio.Protocol):
    """What lies between two ends of a socket; made by an event loop."""

    def __init__(self, on_lost: Callable[["Connection"], None]) -> None:
        """`on_lost` is told when it is closed, by whomever."""
        self.idle_since = 0.0
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._taker: Taker | None = None
        self._fields: Fields = {}
        self._num_bytes = 0
        self._has_heard = False
        self._has_head = False
        self._may_stay = False
        self._is_paused = False

    @property
    def is_open(self) -> bool:
        """Whether something can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def has_heard(self) -> bool:
        """Whether anything came since the last request was sent."""
        return self._has_heard

    def send(self, request: bytes, taker: Taker) -> None:
        """Send a whole request; its answer goes to `taker`."""
        assert self._transport is not None
        assert self._taker is None, "one request at a time"
        self._taker = taker
        self._num_bytes = 0
        self._has_heard = self._has_head = self._may_stay = False
        self._transport.write(request)

    def pause(self) -> None:
        """Let the server wait until `resume`: what it sent has not been read."""
        if self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            if self.is_open:
                cast(asyncio.Transport, self._transport).resume_reading()

    def release(self) -> bool:
        """Want no more of an answer; return whether another request may be sent.

        If not, it is closed at once.
        """
        taker, self._taker = self._taker, None
        if self._transport is None or taker is None:
            return False
        # A server that answers before it has the whole request waits for the rest of it.
        is_sent = self._transport.get_write_buffer_size() == 0
        if taker.is_over and self._may_stay and is_sent and self.is_open:
            self.resume()
            return True
        self.close()
        return False

    def close(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """End an answer: well only where its end is the connection's."""
        self._on_lost(self)
        taker = self._taker
        if taker is None or taker.is_over:
            return
        if error is None and self._has_head and not _has_length(self._fields):
            taker.finish()
        else:
            taker.fail(is_http=True)

    def data_received(self, data: bytes) -> None:
        """Take an answer apart."""
        self._has_heard = True
        taker = self._taker
        if taker is None or taker.is_over:
            # Nobody asked for it.
            self.close()
            return
        self._num_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._spoil(taker)
            return
        if self._num_bytes > _MOST_HEAD_BYTES:
            self._spoil(taker)

    def on_message_begin(self) -> None:
        """Begin an answer, or an interim one before it."""
        self._fields = {}
        # One more than was asked for would be taken for the next request's.
        self._may_stay = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; those behind the body say nothing that matters here."""
        if not self._has_head:
            self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Pass on the head, unless it is an interim one."""
        status = self._parser.get_status_code()
        if status < 200 or self._taker is None or self._taker.is_over:
            return
        fields = self._fields
        if sum(map(len, fields)) + sum(map(len, fields.values())) > _MOST_HEAD_BYTES:
            raise ValueError("the head is too long")
        self._has_head = True
        self._num_bytes = 0
        self._taker.begin(status, fields)

    def on_body(self, data: bytes) -> None:
        """Pass on a piece of the body."""
        self._num_bytes = 0
        if self._has_head and self._taker is not None and not self._taker.is_over:
            self._taker.take(data)

    def on_message_complete(self) -> None:
        """Pass on the end."""
        if self._has_head and self._taker is not None and not self._taker.is_over:
            self._num_bytes = 0
            self._may_stay = self._parser.should_keep_alive()
            self._taker.finish()

    def _spoil(self, taker: Taker) -> None:
        self._may_stay = False
        if not taker.is_over:
            taker.fail(is_http=self._has_head)
        self.close()


def _has_length(fields: Fields) -> bool:
    coding = fields.get(b"transfer-encoding", b"").lower()
    return coding.endswith(b"chunked") or (not coding and b"content-length" in fields)
