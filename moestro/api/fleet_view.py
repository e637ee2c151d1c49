"""What a gateway's fleet looks like at one moment: models, their backends, load, health, prices.

Plain values for pages and for `/v1/models`; no URL's user or password, no keys. Knows no requests.
Next: record.py.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from moestro.api.stats import State

# "open": tried and failing, left alone until `retry_in_s` has passed; "half_open": one request is
# let through to see.
BreakerState = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, kw_only=True)
class LatencyView:
    """Over the recent window, in seconds; None before the first answer."""

    first_p50_s: float | None = None
    first_p95_s: float | None = None
    whole_p50_s: float | None = None
    whole_p95_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class BackendView:
    """One server of a model.

    `name` is unique within the fleet, like "large/0"; `address` is scheme, host and port. `is_up`
    is False where the breaker is open or the last probe failed; `trouble` says what was last wrong.
    """

    name: str
    address: str
    dialect: Literal["openai", "anthropic"]
    is_local: bool
    is_up: bool
    breaker: BreakerState
    retry_in_s: float | None
    trouble: str | None
    weight: float
    max_concurrent: int
    num_in_flight: int
    num_waiting: int
    num_requests: int
    num_errors: int
    num_failovers: int
    latency: LatencyView = field(default_factory=LatencyView)


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """One model of the fleet; `share` is its part of all requests answered since the start.

    `is_up` and `state` are those of the best of its backends. `is_auto` is True where `auto` may
    choose it. `num_requests` are those that it answered, `num_auto` the ones among them that `auto`
    sent here.
    """

    name: str
    is_local: bool
    is_auto: bool
    is_up: bool
    state: State
    context_length: int
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    share: float
    num_requests: int
    num_auto: int
    num_errors: int
    num_in_flight: int
    num_waiting: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    latency: LatencyView = field(default_factory=LatencyView)
    backends: tuple[BackendView, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FleetView:
    """The whole fleet; `strongest` is None without a policy.

    `num_requests` counts what was answered since `since` (seconds since 1970) by all workers.
    """

    models: tuple[ModelView, ...]
    has_policy: bool
    strongest: str | None
    num_requests: int
    num_failovers: int
    num_refused: int
    since: float


class FleetWatch(Protocol):
    """Whoever can tell how the fleet is."""

    def view(self) -> FleetView:
        """Return how it is now; cheap enough for every second."""
