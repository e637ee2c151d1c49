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
    """How long a backend may take: to connect, to its first byte, between two, for the whole."""

    connect_s: float = 5.0
    first_token_s: float = 120.0
    between_tokens_s: float = 60.0
    whole_s: float = 1800.0

    def __post_init__(self) -> None:
        _check_positive(self, "connect_s", "first_token_s", "between_tokens_s", "whole_s")


@dataclass(frozen=True, kw_only=True)
class BreakerConfig:
    """A backend is left alone after `failures` in a row, or when `share` of a window's requests
    failed and at least so many did.

    It is left alone for `open_s`, twice as long each time it fails again, at most `max_open_s`.
    """

    failures: int = 3
    share: float = 0.5
    window_s: float = 30.0
    open_s: float = 2.0
    max_open_s: float = 60.0

    def __post_init__(self) -> None:
        _check_positive(self, "failures", "share", "window_s", "open_s", "max_open_s")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How often each backend is asked for its models, to know that it is there; 0 is never."""

    every_s: float = 10.0
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        _check_positive(self, "timeout_s")
        if not 0 <= self.every_s < math.inf:
            raise ConfigError(f"every_s is {self.every_s}: it must be 0 or more seconds")


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """How many requests may wait for a model while its backends are full, and how long."""

    max_waiting: int = 256
    max_wait_s: float = 30.0

    def __post_init__(self) -> None:
        _check_positive(self, "max_wait_s")
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting is {self.max_waiting}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """The gateway's settings.

    `retries` is how many more backends may be tried before an answer's first byte, and
    `continuations` how many times a stream may be continued elsewhere; between tries of one backend
    lies a random time of up to `backoff_s`, doubled each time, and a backend's own Retry-After is
    waited for if it is at most `max_backoff_s`. `hedge_after_s` asks a second backend when the
    first is silent for so long; None never does. A conversation stays with its model for `sticky_s`
    after its last turn. `continues_across_models` lets another model go on with a stream that its
    own cannot end.
    A cascade decides within an answer's first `cascade_tokens`, for streams.
    """

    timeouts: TimeoutConfig = field(default_factory=TimeoutConfig)
    retries: int = 2
    continuations: int = 2
    backoff_s: float = 0.2
    max_backoff_s: float = 5.0
    hedge_after_s: float | None = None
    sticky_s: float = 3600.0
    continues_across_models: bool = False
    cascade_tokens: int = 32
    max_answer_bytes: int = 64 * 1024**2
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
    """Spans of requests for OpenTelemetry; none, and no cost, without an `endpoint`.

    `endpoint` is a collector's address for OTLP over HTTP, like "http://127.0.0.1:4318". `headers`
    go with what is sent there; a value is "env:" and the name of a variable. Of requests that come
    without a trace of their own a `share` is traced.
    """

    endpoint: str = ""
    service: str = "moestro"
    share: float = 1.0
    headers: dict[str, str] = field(default_factory=dict)

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
