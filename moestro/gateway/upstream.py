"""One worker's connections to backends: a request out, its answer in, as the bytes come.

Sends its own headers only, follows nothing, keeps no cookies. Every fault becomes a `Fault`. Knows
HTTP, not what is asked. Next: faults.py, attempts.py.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import aiohttp

from moestro.gateway.config import TimeoutConfig
from moestro.gateway.faults import Fault
from moestro.gateway.fleet import BackendConfig, Dialect

_ANTHROPIC_VERSION = "2023-06-01"
_LONGEST_HEAD_BYTES = 32 * 1024
_READ_BYTES = 256 * 1024
# Less than many servers keep an idle connection, so that none is closed as it is used again.
_KEPT_S = 4.0
# Without limits of its own: those of the gateway are by backend, and timed more finely.
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=None)


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """One server of a model: where it is, and what every request to it says."""

    name: str
    model: str
    config: BackendConfig
    headers: Mapping[str, str]
    secret: str | None = None
    is_local: bool = False

    @property
    def dialect(self) -> Dialect:
        """What it speaks."""
        return self.config.dialect

    def url(self, path: str) -> str:
        """Return where a path below /v1 is."""
        return self.config.url.rstrip("/") + path.removeprefix("/v1")

    def conceal(self, text: bytes) -> bytes:
        """Return a text without the key, should the server have repeated it."""
        return text if self.secret is None else text.replace(self.secret.encode(), b"***")


def build_upstream(
    name: str, model: str, config: BackendConfig, *, is_local: bool = False
) -> Upstream:
    """Read the key of a server; ConfigError if its variable is not set."""
    secret = config.read_key()
    headers = {
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "moestro",
    }
    if config.dialect == "anthropic":
        headers["anthropic-version"] = _ANTHROPIC_VERSION
    if secret is not None and config.dialect == "anthropic":
        headers["x-api-key"] = secret
    elif secret is not None:
        headers["authorization"] = f"Bearer {secret}"
    return Upstream(
        name=name,
        model=config.model or model,
        config=config,
        headers=headers,
        secret=secret,
        is_local=is_local,
    )


class Connections:
    """All connections of one worker; to be closed by whoever opened them."""

    def __init__(self, timeouts: TimeoutConfig) -> None:
        """Must be called in the worker's event loop."""
        self._timeouts = timeouts
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_read=None, sock_connect=timeouts.connect_s
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_TIMEOUT,
            max_line_size=_LONGEST_HEAD_BYTES,
            max_field_size=_LONGEST_HEAD_BYTES,
            read_bufsize=_READ_BYTES,
        )

    async def close(self) -> None:
        """Close all of them."""
        await self._session.close()

    async def post(
        self, upstream: Upstream, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> "Incoming":
        """Send a request and return its answer's head; `headers` are added to the server's own."""
        sent = upstream.headers if headers is None else {**upstream.headers, **headers}
        return await self._send("POST", upstream, upstream.url(path), sent, body)

    async def get(self, upstream: Upstream, path: str) -> "Incoming":
        """Ask for something and return the answer's head."""
        return await self._send("GET", upstream, upstream.url(path), upstream.headers, None)

    async def _send(
        self,
        method: str,
        upstream: Upstream,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> "Incoming":
        name = upstream.name
        patience_s = self._timeouts.first_token_s
        began_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(patience_s):
                response = await self._session.request(
                    method,
                    url,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=self._timeout,
                )
        except aiohttp.ConnectionTimeoutError as error:
            raise Fault("connect", f"{name} takes no connection", has_begun=False) from error
        except aiohttp.ClientConnectorError as error:
            raise Fault("connect", f"{name} refuses connections", has_begun=False) from error
        except TimeoutError as error:
            message = f"{name} sent nothing within {patience_s:g} s"
            raise Fault("timeout", message) from error
        except aiohttp.ClientConnectionError as error:
            raise Fault("broken", f"{name} closed the connection") from error
        except (aiohttp.ClientError, ValueError) as error:
            # Its text may repeat what was received.
            raise Fault("garbage", f"{name} answered with something other than HTTP") from error
        return Incoming(upstream, response, self._timeouts, began_at)


class Incoming:
    """An answer as it comes in; `close` ends it at once, whatever is still to come."""

    def __init__(
        self,
        upstream: Upstream,
        response: aiohttp.ClientResponse,
        timeouts: TimeoutConfig,
        began_at: float,
    ) -> None:
        """`began_at`: when the request was sent, by the loop's clock."""
        self.upstream = upstream
        self.status = response.status
        self._response = response
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._began_at = self._last_at = began_at
        self._has_more = False
        self._timer = self._loop.call_at(self._deadline(), self._check)

    @property
    def is_stream(self) -> bool:
        """Whether events come."""
        return self._response.content_type == "text/event-stream"

    @property
    def content_type(self) -> str:
        """What its body is said to be, as it was said."""
        return self._response.headers.get("content-type", "application/json")

    @property
    def retry_after_s(self) -> float | None:
        """When the backend wants to be asked again, if it says so."""
        return read_retry_after(self._response.headers.get("retry-after"))

    async def read(self) -> bytes:
        """Return the next bytes as soon as there are some; none at the end."""
        try:
            data = await self._response.content.readany()
        except Fault:
            raise
        except TimeoutError as error:
            raise Fault("timeout", f"{self.upstream.name} fell silent") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Fault("broken", f"{self.upstream.name} broke off its answer") from error
        self._last_at = self._loop.time()
        self._has_more = True
        return data

    async def read_whole(self, most_bytes: int) -> bytes:
        """Return all of it; a Fault if it has more bytes than it may."""
        pieces: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > most_bytes:
                raise Fault("garbage", f"{self.upstream.name} answered with too many bytes")
            pieces.append(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """End it; a connection whose answer came whole is kept for the next request."""
        self._timer.cancel()
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()

    def _deadline(self) -> float:
        timeouts = self._timeouts
        step_s = timeouts.between_tokens_s if self._has_more else timeouts.first_token_s
        return min(self._last_at + step_s, self._began_at + timeouts.whole_s)

    def _check(self) -> None:
        # One timer for the whole answer, which looks rarely, instead of one for each piece.
        deadline = self._deadline()
        if self._loop.time() < deadline:
            self._timer = self._loop.call_at(deadline, self._check)
            return
        name = self.upstream.name
        fault = Fault("timeout", f"{name} fell silent in the middle of its answer")
        if not self._has_more:
            fault = Fault("timeout", f"{name} began no answer in time")
        self._response.content.set_exception(fault)


def read_retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for; None if it makes no sense."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _until(value)
    return seconds if 0 <= seconds < math.inf else None


def _until(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
