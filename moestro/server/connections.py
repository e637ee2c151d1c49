"""Connections that strain the server: no whole request head in time, one without end, nothing read.

Such a connection never becomes a request, so no application sees it; it is closed below. Knows
uvicorn's protocol class, nothing of what requests ask. Next: bodies.py.
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.types import Message
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from moestro.errors import ConfigError
from moestro.server.errors import Problem


@dataclass(frozen=True, kw_only=True)
class ConnectionConfig:
    """How patient the server is with a connection."""

    head_timeout_s: float = 15.0
    """Seconds that a client may take for a request's head. Limits: above 0."""
    idle_timeout_s: int = 75
    """Seconds that a connection may be idle between two requests: longer than clients and proxies
    keep theirs, as a request sent while it closes is lost. Limits: above 0."""
    stall_timeout_s: float = 60.0
    """Seconds for which a client may read nothing of its answer. Limits: above 0."""
    max_head_bytes: int = 64 * 1024
    """Bytes of a head, and of all else that is no body. Limits: above 0."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} is {value}: it must be above 0")


def build_protocol(
    config: ConnectionConfig, on_count: Callable[[int], None] | None = None
) -> type[asyncio.Protocol]:
    """Return the class for uvicorn's setting `http`.

    `on_count` is told how many connections are open whenever that changes.
    """
    own = {"limits": config, "on_count": staticmethod(on_count or _tell_nobody)}
    return type("ImpatientProtocol", (_ImpatientProtocol,), own)


def _tell_nobody(num: int) -> None:
    pass


# Of each header: a colon, a space, the line's end.
_MARKS = 4
# How long the rest of what is refused is read and thrown away.
_LINGER_S = 2.0


def _end_by_closing(cycle: Any) -> None:  # noqa: ANN401 (uvicorn's own, of whichever parser)
    """Send what has no length as it is, to the connection's end: HTTP/1.0 knows no chunks."""
    send_framed, has_length = cycle.send, False

    async def send(message: Message) -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            has_length = b"content-length" in names
            # Whether there are chunks uvicorn decides only where nobody has.
            cycle.chunked_encoding = None if has_length else False
        elif not has_length:
            # Else each piece would be too much to it.
            cycle.expected_content_length = len(message.get("body", b""))
        await send_framed(message)

    cycle.send = send


class _HeadTooLarge(Exception):
    """Ends the parser's work on a head."""


# uvicorn picks the class at run time, by the parsers that are installed.
class _ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    limits = ConnectionConfig()
    on_count: Callable[[int], None]
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    # What has come since the last piece of a body: a head, trailers, or nothing of use.
    _num_bytes = 0
    _answering: Any = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.on_count(len(self.connections))
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._num_bytes += len(data)
        super().data_received(data)
        if self._num_bytes > self.limits.max_head_bytes and not self.transport.is_closing():
            self._refuse_head()
        self._watch_head()

    def on_message_begin(self) -> None:
        self._num_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        texts = itertools.chain(*self.headers)
        self._num_bytes = len(self.url) + sum(map(len, texts)) + _MARKS * len(self.headers)
        if self._num_bytes > self.limits.max_head_bytes:
            raise _HeadTooLarge
        self._num_bytes = 0
        is_first = self._is_idle()
        super().on_headers_complete()
        if is_first:
            self._answering = self.cycle
        if self.cycle is not None and self.cycle.scope["http_version"] == "1.0":
            _end_by_closing(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._num_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if self._num_bytes > self.limits.max_head_bytes:
            self._refuse_head()
            return
        message = "this is not HTTP as RFC 9112 has it: check the first line, headers and lengths"
        self._refuse(Problem(status=400, message=message, code="invalid_http"))

    def connection_lost(self, error: Exception | None) -> None:
        self._forget_head()
        self._forget_stall()
        # uvicorn tells the request that came last; an earlier one may be under way.
        self._leave()
        super().connection_lost(error)
        self.on_count(len(self.connections))

    def pause_writing(self) -> None:
        super().pause_writing()
        delay_s = self.limits.stall_timeout_s
        self._stall_timer = self.loop.call_later(delay_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._forget_stall()
        super().resume_writing()

    def _watch_head(self) -> None:
        # One that has become a WebSocket belongs to another protocol and has left the set.
        if not self._is_idle() or self not in self.connections or self.transport.is_closing():
            self._forget_head()
        elif self._head_timer is None:
            delay_s = self.limits.head_timeout_s
            self._head_timer = self.loop.call_later(delay_s, self.transport.abort)

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _is_silent(self) -> bool:
        return self.cycle is self._answering and not self.cycle.response_started

    def _refuse_head(self) -> None:
        limit = self.limits.max_head_bytes
        message = f"the request's head has more than {limit} bytes, the limit: send fewer headers"
        self._refuse(Problem(status=431, message=message, code="request_head_too_large"))

    def _refuse(self, problem: Problem) -> None:
        if not (self._is_idle() or self._is_silent()):
            # In the middle of an answer, another one would only be taken for a part of it.
            self.transport.close()
            return
        self._leave()
        body = msgspec.json.encode(problem.to_dict())
        phrase = HTTPStatus(problem.status).phrase.encode()
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (problem.status, phrase, len(body), body)
        )
        self._is_refused = True
        if self.transport.can_write_eof():
            # A connection that is closed with bytes unread is reset, and the answer lost.
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _leave(self) -> None:
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _forget_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
