"""How much each client may ask for, and how much all of them: beyond it, a 429 at once.

A client is a key's name, or an address where no key is asked for. Knows no bodies and no models.
Next: clients.py, bodies.py.
"""

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moestro.errors import CapacityError, ConfigError
from moestro.server.clients import Client, ClientTable, OwnClients
from moestro.server.errors import Problem, describe
from moestro.server.keys import KEY_NAME, OPEN_PATHS
from moestro.server.refusal import Headers, refuse

GENERATED_TOKENS = "generated_tokens"
METERED_FOLDERS = ("/v1/", "/tokenize", "/detokenize")
# What waits for a model.
_QUEUED_PATHS = frozenset(
    ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
)
# A household or a rented machine has all addresses of one such network.
_IPV6_NETWORK_BITS = 64
_BUSY_RETRY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ClientLimits:
    """What one client may ask for; none is no limit."""

    requests_per_minute: int | None = None
    """Requests in a minute. Limits: 1 or more."""
    tokens_per_minute: int | None = None
    """Generated tokens in a minute. Limits: 1 or more."""
    concurrent_requests: int | None = None
    """Requests at the same time. Limits: 1 or more."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be 1 or more, or none")


_NO_LIMITS = ClientLimits()


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits of `each` client, other ones `by_key` name, and those of the whole server.

    A fleet's workers count keys together. Addresses each of them counts for itself, so that several
    let in up to so many times as much, and `max_open_requests` are each one's.
    """

    each: ClientLimits = ClientLimits()
    by_key: dict[str, ClientLimits] = field(default_factory=dict)
    max_open_requests: int = 1024
    """Requests that may be open at once, of all clients. Limits: 1 or more."""
    max_known_clients: int = 10_000
    """Clients that are counted at once. Limits: 1 or more."""

    def __post_init__(self) -> None:
        for name in ("max_open_requests", "max_known_clients"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be 1 or more")


class Limits:
    """Refuses what is too much; tells how much is left as OpenAI does.

    Requests below `metered_folders` count against their client. Whoever answers one leaves what it
    generated in `scope["state"]["generated_tokens"]`. Paths in `free_paths` have no limit at all.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: LimitsConfig,
        *,
        metered_folders: Collection[str] = METERED_FOLDERS,
        free_paths: Collection[str] = OPEN_PATHS,
        clock: Callable[[], float] = time.monotonic,
        shared: ClientTable | None = None,
        check_room: Callable[[int], None] = lambda num_before: None,
    ) -> None:
        """`shared` has the clients that are keys, where several processes count them.

        `check_room` raises CapacityError where a request has no place behind so many others: it is
        refused before it is read.
        """
        self._app = app
        self._config = config
        self._metered_folders = tuple(metered_folders)
        self._free_paths = frozenset(free_paths)
        self._clock = clock
        self._clients = OwnClients(config.max_known_clients)
        self._keys: ClientTable = self._clients if shared is None else shared
        self._check_room = check_room
        self._num_open = 0
        self._num_beginning = 0
        self._turnstile = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or answer 429."""
        if scope["type"] != "http" or scope["path"] in self._free_paths:
            await self._app(scope, receive, send)
            return
        if self._num_open >= self._config.max_open_requests:
            message = f"{self._num_open} requests are open, the server's limit: try again later"
            await refuse(_too_many(message, _BUSY_RETRY_S), scope, send)
            return
        if scope["path"] in _QUEUED_PATHS:
            try:
                self._check_room(self._num_beginning)
            except CapacityError as error:
                await refuse(describe(error), scope, send)
                return
        with self._opened():
            await self._wait_turn()
            if scope["path"].startswith(self._metered_folders):
                await self._serve_metered(scope, receive, send)
            else:
                await self._app(scope, receive, send)

    async def _wait_turn(self) -> None:
        # Of many that come at once one begins at a time, and streams go on between any two.
        self._num_beginning += 1
        try:
            async with self._turnstile:
                await asyncio.sleep(0)
        finally:
            self._num_beginning -= 1

    async def _serve_metered(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _key_name(scope)
        limits = self._config.by_key.get(name, self._config.each)
        # Without limits there is nothing to count together, and no turn to wait for.
        table = self._keys if name and limits != _NO_LIMITS else self._clients
        with table.turn():
            client = self._find(table, scope, limits)
            problem = _find_excess(client, limits, self._clock())
            if problem is None:
                client.change_open(1)
                if client.requests is not None:
                    client.requests.take(1, self._clock())
            headers = _headers(client, self._clock())
        if problem is not None:
            await refuse(problem, scope, send, headers)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        state = scope.setdefault("state", {})
        try:
            await self._app(scope, receive, send_with_headers if headers else send)
        finally:
            with table.turn():
                client = self._find(table, scope, limits)
                client.change_open(-1)
                if client.tokens is not None:
                    client.tokens.take(state.get(GENERATED_TOKENS, 0), self._clock())

    def _find(self, table: ClientTable, scope: Scope, limits: ClientLimits) -> Client:
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        return table.find(_identity(scope), requests, tokens, self._clock())

    @contextmanager
    def _opened(self) -> Iterator[None]:
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1


def format_duration(seconds: float) -> str:
    """Write a time as OpenAI's rate limit headers do: 120ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"


def _identity(scope: Scope) -> str:
    name = _key_name(scope)
    if name:
        return f"key {name}"
    return _name_address((scope.get("client") or ("", 0))[0])


@lru_cache(maxsize=1024)
def _name_address(host: str) -> str:
    # The same few ask again and again, and reading an address takes microseconds.
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"address {host}"
    if address.version == 6:
        return f"network {ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False)}"
    return f"address {address}"


def _key_name(scope: Scope) -> str:
    name: str = scope.get("state", {}).get(KEY_NAME, "")
    return name


def _find_excess(client: Client, limits: ClientLimits, now: float) -> Problem | None:
    if limits.concurrent_requests is not None and client.num_open >= limits.concurrent_requests:
        message = f"{client.num_open} requests are under way, your limit: wait for one of them"
        return _too_many(message, _BUSY_RETRY_S)
    for bucket, unit in ((client.requests, "requests"), (client.tokens, "generated tokens")):
        wait_s = 0.0 if bucket is None else bucket.wait_s(1, now)
        if bucket is not None and wait_s > 0:
            message = f"your limit is {bucket.per_minute} {unit} per minute"
            message += f": try again in {format_duration(wait_s)}"
            return _too_many(message, wait_s)
    return None


def _headers(client: Client, now: float) -> Headers:
    headers: list[tuple[bytes, bytes]] = []
    for bucket, unit in ((client.requests, b"requests"), (client.tokens, b"tokens")):
        if bucket is not None:
            left = max(0, math.floor(bucket.level(now)))
            headers += [
                (b"x-ratelimit-limit-" + unit, b"%d" % bucket.per_minute),
                (b"x-ratelimit-remaining-" + unit, b"%d" % left),
                (b"x-ratelimit-reset-" + unit, format_duration(bucket.full_in_s(now)).encode()),
            ]
    return headers


def _too_many(message: str, retry_after_s: float) -> Problem:
    return Problem(
        status=429,
        message=message,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )
