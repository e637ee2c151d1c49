"""Where and how the server listens, and whom it lets in.

Knows no model. Next: app.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

from moestro.errors import ConfigError
from moestro.server.bodies import BodyConfig
from moestro.server.connections import ConnectionConfig
from moestro.server.keys import KeysConfig
from moestro.server.limits import LimitsConfig


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server's settings."""

    host: str = "127.0.0.1"
    """Address to listen on; without keys keep it on the loopback address."""
    port: int = 8000
    """Port to listen on; 0 for any free one. Limits: 0 to 65535."""
    tls_cert: Path | None = None
    """The certificate's file, in PEM, for https. Limits: with `tls_key`."""
    tls_key: Path | None = None
    """The certificate's key, in PEM. Limits: with `tls_cert`."""
    cors_origins: tuple[str, ...] = ()
    """Where web pages come from that may use it from a browser; by default none but its own."""
    drain_s: float = 30.0
    """Seconds that requests under way may take when it stops. Limits: 0 or more."""
    keys: KeysConfig = field(default_factory=KeysConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    bodies: BodyConfig = field(default_factory=BodyConfig)
    connections: ConnectionConfig = field(default_factory=ConnectionConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}: it must be 0 to 65535")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key belong together: give both files or none")
        if not 0 <= self.drain_s < float("inf"):
            raise ConfigError(f"drain_s is {self.drain_s}: it must be a number of seconds")
