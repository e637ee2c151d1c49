"""Request bodies: as they are, not too large and not too slow, else a 415, 413 or 408 at once.

Knows nothing of what bodies say. Next: connections.py for what comes before a body.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moestro.errors import ConfigError
from moestro.server.errors import Problem
from moestro.server.refusal import CLOSE, refuse, refuse_and_drain

# Whoever uploads more slowly than this holds a connection for its own sake.
_SLOWEST_BYTES_PER_S = 16 * 1024
_DISCONNECT: Message = {"type": "http.disconnect"}


@dataclass(frozen=True, kw_only=True)
class BodyConfig:
    """How large and how slow a request's body may be."""

    max_bytes: int = 8 * 1024**2
    """Bytes of a body. Limits: 1 or more."""
    timeout_s: float = 30.0
    """Seconds that a body may lag behind 16 KiB per second. Limits: above 0."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not self.timeout_s > 0:
            raise ConfigError(
                f"max_bytes is {self.max_bytes}, timeout_s {self.timeout_s}: both must be above 0"
            )


class BodyGuard:
    """Stands between the server and an application that may read any body to its end."""

    def __init__(self, app: ASGIApp, config: BodyConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve; what the application says after a refusal is not heard."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = _Upload(self._config, scope, receive, send)
        if _declared_bytes(scope) > self._config.max_bytes:
            await upload.refuse_size()
            return
        coding = _find_coding(scope)
        if coding:
            await upload.refuse_coding(coding)
            return
        await self._app(scope, upload.receive, upload.send)


class _Upload:
    """One request's body on its way in, and the response on its way out."""

    def __init__(self, config: BodyConfig, scope: Scope, receive: Receive, send: Send) -> None:
        self._config = config
        self._scope = scope
        self._receive = receive
        self._send = send
        self._began_at = asyncio.get_running_loop().time()
        self._num_bytes = 0
        self._is_whole = False
        self._has_answer = False
        self._is_refused = False

    async def receive(self) -> Message:
        """Give the application the next piece, or a disconnect after a refusal."""
        if self._is_refused:
            return _DISCONNECT
        if self._is_whole:
            return await self._receive()
        patience_s = self._config.timeout_s + self._num_bytes / _SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout_at(self._began_at + patience_s):
                message = await self._receive()
        except TimeoutError:
            return await self._refuse_slowness()
        self._num_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._num_bytes > self._config.max_bytes:
            return await self.refuse_size()
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the application answers, unless it has been refused."""
        self._has_answer = True
        if not self._is_refused:
            await self._send(message)

    async def refuse_size(self) -> Message:
        """Answer 413."""
        limit = self._config.max_bytes
        message = f"the body has more than {limit} bytes, the limit: send less at once"
        problem = Problem(status=413, message=message, code="request_too_large")
        return await self._refuse(refuse_and_drain(problem, self._scope, self._receive, self._send))

    async def refuse_coding(self, coding: str) -> Message:
        """Answer 415: a small packed body can be one without end."""
        message = f"content-encoding is {coding[:60]}: send the body as it is"
        problem = Problem(status=415, message=message, code="unsupported_media_type")
        refusal = refuse_and_drain(
            problem, self._scope, self._receive, self._send, [(b"accept-encoding", b"identity")]
        )
        return await self._refuse(refusal)

    async def _refuse_slowness(self) -> Message:
        message = f"the body did not come in time, {self._num_bytes} bytes so far: send it faster"
        problem = Problem(status=408, message=message, code="request_timeout")
        return await self._refuse(refuse(problem, self._scope, self._send, [CLOSE]))

    async def _refuse(self, answer: Coroutine[Any, Any, None]) -> Message:
        self._is_refused = True
        # Half an answer cannot be taken back: then the connection just ends.
        if self._has_answer:
            answer.close()
        else:
            await answer
        return _DISCONNECT


def _find_coding(scope: Scope) -> str:
    values = (value for name, value in scope["headers"] if name == b"content-encoding")
    coding = b", ".join(values).decode("latin-1").strip()
    return "" if coding.lower() == "identity" else coding


def _declared_bytes(scope: Scope) -> int:
    # Cut, because a number of any length is allowed here, and Python refuses to read one.
    values = [value[:19] for name, value in scope["headers"] if name == b"content-length"]
    return max((int(value) for value in values if value.isdigit()), default=0)
