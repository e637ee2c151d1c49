"""One line in the log and one id for each request. What was asked is never logged.

Knows no route. Next: app.py.
"""

import logging
import os
import re
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

# A caller's own id goes into headers and logs as it is, so it may hold nothing surprising.
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_ID_BYTES = 16
_NAMES = (b"x-request-id",)
# Anthropic's clients look for the id under a name of their own.
_ANTHROPIC = "/v1/messages"
_ANTHROPIC_NAMES = (*_NAMES, b"request-id")
_SHOWN_PATH = 100
# Where whoever wrote a line of its own about a request says so, so that there are not two.
IS_LOGGED = "is_logged"
# What machines and open pages ask for every few seconds would hide what people ask for.
_POLLED_PATHS = ("/health", "/ready", "/metrics")
_POLLED_FOLDERS = ("/ui/",)


class AccessLog:
    """Gives each request an id, the caller's own if it has one, and logs how it ended."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, and log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _read_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        began_at, status = self._clock(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = _ANTHROPIC_NAMES if scope["path"].startswith(_ANTHROPIC) else _NAMES
                own = [(name, request_id.encode()) for name in names]
                headers = [*message.get("headers", ()), *own]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            num_tokens = state.get("generated_tokens")
            log.log(
                logging.DEBUG if _is_quiet(scope) else logging.INFO,
                "%s %s %s: status %s in %.3f s%s",
                request_id,
                scope["method"],
                ascii(scope["path"][:_SHOWN_PATH])[1:-1],
                # No answer at all: an error on its way to whoever answers 500.
                status or 500,
                self._clock() - began_at,
                # Where none can be, as for a page, none are told of.
                "" if num_tokens is None else f", {num_tokens} tokens",
            )


def _is_quiet(scope: Scope) -> bool:
    path = scope["path"]
    is_polled = path in _POLLED_PATHS or path.startswith(_POLLED_FOLDERS)
    return is_polled or scope["state"].get(IS_LOGGED, False)


def _read_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value.decode())
    return os.urandom(_ID_BYTES).hex()
