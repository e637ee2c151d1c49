"""How the gateway passes requests on: patience, retries, breakers, probes, queues.

The tables `[gateway]` and `[telemetry]` of a fleet's file. Knows no model. Next: fleet.py.
"""

import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from moestro import settings
from moestro.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TimeoutConfig:
    """How long a backend may take."""

    connect_s: float = 5.0
    """Seconds to connect. Limits: above 0."""
    first_token_s: float = 120.0
    """Seconds to its answer's first byte. Limits: above 0."""
    between_tokens_s: float = 60.0
    """Seconds between two pieces of its answer. Limits: above 0."""
    whole_s: float = 1800.0
    """Seconds for the whole answer. Limits: above 0."""

    def __post_init__(self) -> None:
        _check_positive(self, "connect_s", "first_token_s", "between_tokens_s", "whole_s")


@dataclass(frozen=True, kw_only=True)
class BreakerConfig:
    """When a backend that fails is left alone, and for how long."""

    failures: int = 3
    """After so many failures in a row it is left alone. Limits: above 0."""
    share: float = 0.5
    """Or when this share of a window's requests failed, and at least `failures` of them.
    Limits: above 0, at most 1."""
    window_s: float = 30.0
    """Seconds of a window. Limits: above 0."""
    open_s: float = 2.0
    """Seconds for which it is left alone, twice as long each time it fails again.
    Limits: above 0."""
    max_open_s: float = 60.0
    """The most seconds of that. Limits: above 0."""

    def __post_init__(self) -> None:
        _check_positive(self, "failures", "window_s", "open_s", "max_open_s")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share is {self.share}: it must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How each backend is asked for its models, to know that it is there.

    Without probes a server is taken for there until requests find otherwise. A model on this
    machine is asked whether it has loaded in any case.
    """

    every_s: float = 10.0
    """Seconds between two probes; 0 is never. Limits: 0 or more."""
    timeout_s: float = 5.0
    """Seconds that one may take. Limits: above 0."""

    def __post_init__(self) -> None:
        _check_positive(self, "timeout_s")
        if not 0 <= self.every_s < math.inf:
            raise ConfigError(f"every_s is {self.every_s}: it must be 0 or more seconds")


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """What may wait for a model while its backends are full."""

    max_waiting: int = 256
    """Requests that may wait for one model. Limits: 0 or more."""
    max_wait_s: float = 30.0
    """Seconds that one may wait. Limits: above 0."""

    def __post_init__(self) -> None:
        _check_positive(self, "max_wait_s")
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting is {self.max_waiting}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """How requests are passed on."""

    timeouts: TimeoutConfig = field(default_factory=TimeoutConfig)
    retries: int = 2
    """How many more backends may be tried before an answer's first byte. Limits: 0 to 10."""
    continuations: int = 2
    """How many times a stream may be continued elsewhere. Limits: 0 to 10."""
    backoff_s: float = 0.2
    """Between tries of one backend lies a random time of up to so many seconds, doubled each time.
    Limits: above 0."""
    max_backoff_s: float = 5.0
    """The most seconds of that; a backend's own Retry-After is waited for if it is no longer.
    Limits: above 0."""
    hedge_after_s: float | None = None
    """Ask a second backend when the first is silent for so many seconds; none never does. What the
    slower one read is in no cost here, though its operator may bill it.
    Limits: above 0."""
    sticky_s: float = 3600.0
    """Seconds for which a conversation stays with its model after its last turn; another one that
    answers while that one cannot only stands in for it.
    Limits: 0 or more."""
    continues_across_models: bool = False
    """Let another model go on with a stream that its own cannot end."""
    cascade_tokens: int = 32
    """A cascade decides within so many tokens of a streamed answer. Limits: above 0."""
    max_answer_bytes: int = 64 * 1024**2
    """Bytes of an answer that is read whole. Limits: above 0."""
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)

    def __post_init__(self) -> None:
        _check_positive(self, "backoff_s", "max_backoff_s", "cascade_tokens", "max_answer_bytes")
        if self.hedge_after_s is not None:
            _check_positive(self, "hedge_after_s")
        for name in ("retries", "continuations"):
            if not 0 <= getattr(self, name) <= 10:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be 0 to 10")
        if not 0 <= self.sticky_s < math.inf:
            raise ConfigError(f"sticky_s is {self.sticky_s}: it must be 0 or more seconds")


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """Spans of requests for OpenTelemetry; none, and no cost, without an `endpoint`."""

    endpoint: str = ""
    """A collector's address for OTLP over HTTP, like http://127.0.0.1:4318."""
    service: str = "moestro"
    """The service's name in spans."""
    share: float = 1.0
    """Share of requests that are traced, of those that come without a trace of their own.
    Limits: 0 to 1."""
    headers: dict[str, str] = field(default_factory=dict)
    """Go with what is sent there; a value is `env:` and the name of a variable."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share is {self.share}: it must be 0 to 1")
        parts = urlsplit(self.endpoint)
        if self.endpoint and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ConfigError("endpoint is no address: it should be like http://127.0.0.1:4318")
        if parts.username is not None or parts.password is not None:
            # Not shown: it may hold a secret.
            raise ConfigError("endpoint has a user or a password in it: name a variable in headers")
        for name, value in self.headers.items():
            if not value.startswith("env:"):
                raise ConfigError(f'headers.{name} names no variable: write "env:" and its name')

    @property
    def traces_url(self) -> str:
        """Where spans are sent."""
        return f"{self.endpoint.rstrip('/')}/v1/traces"

    def read_headers(self) -> dict[str, str]:
        """Return the headers with their secrets; ConfigError if one is not set."""
        return {
            name: settings.secret(value.removeprefix("env:"))
            for name, value in self.headers.items()
        }


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}: it must be above 0")
