"""Server-sent events out: to whoever stays connected, as fast as the connection takes them.

A reader that is too slow holds back its own stream only: each event waits until the connection
takes it. Knows no dialect. Next: watch.py, exchange.py.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moestro.server.errors import ClientGone
from moestro.server.watch import while_connected

DONE = b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def encode_event(data: object, name: str | None = None) -> bytes:
    """Write one event; only some dialects give theirs a name."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream(Response):
    """Sends events as they come, and closes their generator when the client goes away."""

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(headers={**_HEADERS, **headers})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, unless the client goes away before."""
        async with aclosing(self._events):
            with suppress(ClientGone):
                await while_connected(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class JsonResponse(Response):
    """One JSON document."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Encode it."""
        return msgspec.json.encode(content)
