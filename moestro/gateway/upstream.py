"""One worker's connections to backends: a request out, and its answer as it comes in.

Sends its own headers only, follows nothing, keeps no cookies. Every fault becomes a `Fault`. Knows
HTTP, not what is asked. Next: incoming.py, connection.py, attempts.py.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from aiohappyeyeballs import AddrInfoType, start_connection

from moestro.errors import ConfigError
from moestro.gateway.config import TimeoutConfig
from moestro.gateway.connection import Connection
from moestro.gateway.faults import Fault
from moestro.gateway.fleet import BackendConfig, Dialect
from moestro.gateway.incoming import Incoming

_ANTHROPIC_VERSION = "2023-06-01"
# Less than many servers keep an idle connection, so that none is closed as it is used again.
_KEPT_S = 4.0
_ADDRESSES_KEPT_S = 10.0
# How long one address may take before the next one is tried beside it (RFC 8305).
_NEXT_ADDRESS_S = 0.25
_PORTS = {"http": 80, "https": 443}
_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens."""

    host: str
    port: int
    is_tls: bool


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """One server of a model: where it is, and what every request to it says.

    `name` is what people read, and has its number in the configuration; `row` is what it has in
    what workers share, which stays its own when a new configuration numbers servers anew. `folder`
    is what its paths have instead of /v1, `fields` the lines of a head but the first.
    """

    name: str
    row: str
    model: str
    config: BackendConfig
    place: Place
    folder: bytes
    fields: bytes
    secret: str | None = None
    is_local: bool = False

    @property
    def dialect(self) -> Dialect:
        """What it speaks."""
        return self.config.dialect

    def request(
        self, method: bytes, path: str, body: bytes, headers: Mapping[str, str] = _NO_HEADERS
    ) -> bytes:
        """Write a request; `headers` are added to the server's own."""
        place = self._folder_of(path) + path.removeprefix("/v1").encode()
        fields = self.fields + write_fields(headers) if headers else self.fields
        head = b"%b %b HTTP/1.1\r\n%b" % (method, place, fields)
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    def _folder_of(self, path: str) -> bytes:
        # What is none of OpenAI's, like /tokenize, lies beside /v1.
        return self.folder if path.startswith("/v1/") else self.folder.removesuffix(b"/v1")

    def conceal(self, text: bytes) -> bytes:
        """Return a text without the key, should the server have repeated it."""
        return text if self.secret is None else text.replace(self.secret.encode(), b"***")


def write_fields(headers: Mapping[str, str]) -> bytes:
    """Write the lines of a head; values are ours, or have been checked."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert lines.count("\n") == len(headers), "a value that has lines"
    return lines.encode()


def build_upstream(
    name: str, model: str, config: BackendConfig, *, copy: int = 0, is_local: bool = False
) -> Upstream:
    """Read the key of a server; ConfigError if its variable is not set, or holds no key.

    `copy` is how many of the model's backends before it are the same server.
    """
    parts = urlsplit(config.url)
    secret = config.read_key()
    headers = {
        "host": parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode(),
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "moestro",
    }
    if config.dialect == "anthropic":
        headers["anthropic-version"] = _ANTHROPIC_VERSION
    if secret is not None:
        if not (secret.isascii() and secret.isprintable()):
            raise ConfigError(f"the key of {name} has characters that no header may have")
        is_bearer = config.dialect != "anthropic"
        headers |= {"authorization": f"Bearer {secret}"} if is_bearer else {"x-api-key": secret}
    return Upstream(
        name=name,
        row=f"{model} at {config.url} as {config.model or model}, {copy}",
        model=config.model or model,
        config=config,
        place=Place(
            parts.hostname or "", parts.port or _PORTS[parts.scheme], parts.scheme == "https"
        ),
        folder=quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._").encode(),
        fields=write_fields(headers),
        secret=secret,
        is_local=is_local,
    )


class Connections:
    """All connections of one worker; to be closed by whoever opened them."""

    def __init__(self, timeouts: TimeoutConfig) -> None:
        """Must be called in the worker's event loop."""
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._all: set[Connection] = set()
        # Of each place, the one used last is last.
        self._idle: dict[Place, list[Connection]] = {}
        self._addresses: dict[Place, tuple[float, list[AddrInfoType]]] = {}
        self._tls: ssl.SSLContext | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def close(self) -> None:
        """Close all of them."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in tuple(self._all):
            connection.close()
        # What is closed learns of it in the loop's next turn.
        await asyncio.sleep(0)

    async def post(
        self,
        upstream: Upstream,
        path: str,
        body: bytes,
        headers: Mapping[str, str] = _NO_HEADERS,
        *,
        is_repeatable: bool = True,
    ) -> Incoming:
        """Send a request and return its answer's head; `headers` are added to the server's own.

        One that is not repeatable is sent once, whatever becomes of it.
        """
        request = upstream.request(b"POST", path, body, headers)
        return await self._send(upstream, request, is_repeatable=is_repeatable)

    async def get(self, upstream: Upstream, path: str) -> Incoming:
        """Ask for something and return the answer's head."""
        request = upstream.request(b"GET", path, b"")
        return await self._send(upstream, request, is_repeatable=True)

    async def _send(self, upstream: Upstream, request: bytes, *, is_repeatable: bool) -> Incoming:
        kept = self._find_idle(upstream.place)
        if kept is not None:
            try:
                return await self._send_over(kept, upstream, request)
            except Fault as fault:
                is_closed_unheard = fault.kind == "broken" and not kept.has_heard
                if not (is_closed_unheard and is_repeatable):
                    raise
                # A server may close an idle connection just as it is used again: no fault of its.
        return await self._send_over(await self._open(upstream), upstream, request)

    async def _send_over(
        self, connection: Connection, upstream: Upstream, request: bytes
    ) -> Incoming:
        place = upstream.place

        def keep(connection: Connection) -> None:
            self._keep(place, connection)

        incoming = Incoming(upstream.name, connection, self._timeouts, keep)
        connection.send(request, incoming)
        try:
            await incoming.begun()
        except BaseException:
            incoming.close()
            raise
        return incoming

    def _find_idle(self, place: Place) -> Connection | None:
        idle = self._idle.get(place)
        while idle:
            connection = idle.pop()
            if connection.is_open and self._loop.time() - connection.idle_since < _KEPT_S:
                return connection
            connection.close()
        return None

    def _keep(self, place: Place, connection: Connection) -> None:
        if self._is_closed:
            connection.close()
            return
        connection.idle_since = self._loop.time()
        self._idle.setdefault(place, []).append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_KEPT_S, self._sweep)

    def _sweep(self) -> None:
        oldest = self._loop.time() - _KEPT_S
        self._sweeping = None
        for place, idle in list(self._idle.items()):
            fresh = [each for each in idle if each.is_open and each.idle_since > oldest]
            for connection in set(idle).difference(fresh):
                connection.close()
            if fresh:
                self._idle[place] = fresh
            else:
                del self._idle[place]
        if self._idle:
            self._sweeping = self._loop.call_later(_KEPT_S, self._sweep)

    async def _open(self, upstream: Upstream) -> Connection:
        name = upstream.name
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                return await self._connect(upstream.place)
        except TimeoutError as error:
            raise Fault("connect", f"{name} takes no connection", has_begun=False) from error
        except OSError as error:
            # A certificate that is not good is such an error too.
            raise Fault("connect", f"{name} refuses connections", has_begun=False) from error

    async def _connect(self, place: Place) -> Connection:
        found = await start_connection(
            await self._resolve(place), happy_eyeballs_delay=_NEXT_ADDRESS_S, loop=self._loop
        )
        try:
            # Else a request's last bytes wait for the acknowledgement of those before.
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._all.discard),
                sock=found,
                ssl=self._secure() if place.is_tls else None,
                server_hostname=place.host if place.is_tls else None,
            )
        except BaseException:
            found.close()
            raise
        self._all.add(connection)
        return connection

    async def _resolve(self, place: Place) -> list[AddrInfoType]:
        now = self._loop.time()
        until, known = self._addresses.get(place, (0.0, []))
        if now < until:
            return known
        found = await self._loop.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        addresses: list[AddrInfoType] = [*found]
        self._addresses[place] = (now + _ADDRESSES_KEPT_S, addresses)
        return addresses

    def _secure(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls
