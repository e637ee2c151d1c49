"""Connections that keep the server waiting: no whole request head in time, or nothing read.

Such a connection never becomes a request, so no application sees it; it is closed below. Knows
uvicorn's protocol class, nothing of what requests ask. Next: bodies.py.
"""

import asyncio
from dataclasses import dataclass

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from moestro.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ConnectionConfig:
    """How long a client may take for a request's head, and how long it may read nothing."""

    head_timeout_s: float = 15.0
    stall_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} is {value}: it must be above 0")


def build_protocol(config: ConnectionConfig) -> type[asyncio.Protocol]:
    """Return the class for uvicorn's setting `http`."""
    return type("ImpatientProtocol", (_ImpatientProtocol,), {"timeouts": config})


# uvicorn picks the class at run time, by the parsers that are installed.
class _ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    timeouts = ConnectionConfig()
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, error: Exception | None) -> None:
        self._forget_head()
        self._forget_stall()
        super().connection_lost(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        delay_s = self.timeouts.stall_timeout_s
        self._stall_timer = self.loop.call_later(delay_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._forget_stall()
        super().resume_writing()

    def _watch_head(self) -> None:
        # One that has become a WebSocket belongs to another protocol and has left the set.
        is_idle = self.cycle is None or self.cycle.response_complete
        if not is_idle or self not in self.connections or self.transport.is_closing():
            self._forget_head()
        elif self._head_timer is None:
            delay_s = self.timeouts.head_timeout_s
            self._head_timer = self.loop.call_later(delay_s, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _forget_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
