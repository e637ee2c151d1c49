"""An application on a port until a signal: listen, serve, let requests under way end, stop.

The first signal lets what is under way end within the deadline; a second one stops at once. Knows
no model. Next: serve.py, wiring.py.
"""

import asyncio
import errno
import gc
import ipaddress
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI

from moestro.api.backend import Backend
from moestro.cli.doorman import Doorman, Shares
from moestro.errors import ConfigError
from moestro.server.config import ServerConfig
from moestro.server.connections import build_protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WAITING_CONNECTIONS = 2048
_COLLECTED_OBJECTS = 20_000
_TURN_S = 0.0005
# For the last bytes to be written, once the backend has stopped.
_LAST_BYTES_S = 5.0


def listen(config: ServerConfig) -> socket.socket:
    """Take the port, so that a mistake is known before anything is loaded."""
    host, port = config.host, config.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_WAITING_CONNECTIONS)
        # Connections inherit it: else a first token waits 40 ms for the headers' acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except socket.gaierror as error:
        raise ConfigError(f"host {host}: {error.strerror}: give an address of this machine") from (
            error
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use: stop what listens there, or give another --port"
            ) from error
        reason = error.strerror or error
        raise ConfigError(
            f"port {port} on {host}: {reason}: give another --host or --port"
        ) from error


def check_tls(config: ServerConfig) -> None:
    """Raise ConfigError if certificate and key cannot be used."""
    if config.tls_cert is None or config.tls_key is None:
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except OSError as error:
        reason = error.strerror or "not a certificate and its key in PEM form"
        raise ConfigError(
            f"server.tls_cert {config.tls_cert} and server.tls_key {config.tls_key}: {reason}"
        ) from error


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end in an event loop of its own: uvloop's where it is installed."""
    with asyncio.Runner(loop_factory=_find_loop()) as runner:
        runner.run(work)


def _find_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def is_private(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


async def serve(
    app: FastAPI,
    backend: Backend,
    config: ServerConfig,
    listener: socket.socket,
    on_start: Callable[[Callable[[], None]], Coroutine[Any, Any, None]],
    *,
    signals: Collection[signal.Signals] = SIGNALS,
    shares: Shares | None = None,
) -> None:
    """Serve until a signal comes or the function that `on_start` is given is called.

    `shares` tell which connections are this process's, where others listen there as well.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=build_protocol(config.connections, None if shares is None else shares.note),
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
            log_config=None,
            access_log=False,
            timeout_keep_alive=config.connections.idle_timeout_s,
            timeout_graceful_shutdown=round(config.drain_s + _LAST_BYTES_S),
            server_header=False,
        ),
        shares,
    )
    _calm_interpreter()
    ending = _Ending(server, backend, config.drain_s)
    beside = asyncio.create_task(on_start(ending.begin))
    with ending.on_signals(signals):
        await ending.run(listener)
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)


def _calm_interpreter() -> None:
    # All streams wait while the collector walks through what a large body became, or what was
    # imported.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_OBJECTS, *gc.get_threshold()[1:])
    # And while a thread beside them, that of the records for one, has its turn: 5 ms by default.
    sys.setswitchinterval(_TURN_S)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, shares: Shares | None) -> None:
        super().__init__(config)
        self._shares = shares
        self._doormen: list[Doorman] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections: all of them, or this worker's share."""
        if self._shares is None:
            await super().startup(sockets)
            return
        await super().startup([])
        assert sockets is not None
        self._doormen = [Doorman(each, self._shares, self._take) for each in sockets]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and end."""
        for doorman in self._doormen:
            doorman.close()
        await super().shutdown(sockets)

    async def _take(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        def build() -> asyncio.Protocol:
            protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
            )
            return protocol

        try:
            await loop.connect_accepted_socket(build, connection, ssl=self.config.ssl)
        except BaseException:
            connection.close()
            raise

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again once it has stopped."""
        yield


class _Ending:
    """How a server ends: in good order at first, at once if told again."""

    def __init__(self, server: uvicorn.Server, backend: Backend, drain_s: float) -> None:
        self._server = server
        self._backend = backend
        self._drain_s = drain_s
        self._serving: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None

    async def run(self, listener: socket.socket) -> None:
        """Serve to the end."""
        self._serving = asyncio.create_task(self._server.serve([listener]))
        with suppress(asyncio.CancelledError):
            await self._serving
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)
        # Done already, unless the server was told twice.
        await self._backend.stop(0)

    @contextmanager
    def on_signals(self, signals: Collection[signal.Signals]) -> Iterator[None]:
        """End on Ctrl-C or a service manager's word."""
        loop = asyncio.get_running_loop()
        for name in signals:
            loop.add_signal_handler(name, self._tell)
        try:
            yield
        finally:
            for name in signals:
                loop.remove_signal_handler(name)

    def begin(self) -> None:
        """Accept nothing more; the backend lets requests end, and ends them at the deadline."""
        if self._draining is None:
            self._server.should_exit = True
            self._draining = asyncio.create_task(self._backend.stop(self._drain_s))

    def _tell(self) -> None:
        if self._draining is None:
            self.begin()
            return
        # uvicorn would log all that is cut off now as faults, each with a traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._server.force_exit = True
        if self._serving is not None:
            self._serving.cancel()
