"""How one backend fares: its breaker, its latency of late, what it was asked and how it failed.

Next: balance.py, probe.py.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from moestro.api.fleet_view import BackendView, LatencyView
from moestro.api.stats import State
from moestro.gateway import breaker as breakers
from moestro.gateway.breaker import Breaker
from moestro.gateway.config import BreakerConfig
from moestro.gateway.faults import Fault
from moestro.gateway.shared import Shared
from moestro.gateway.upstream import Upstream

_WINDOW = 256


class Window:
    """The latest values of one kind, of all workers, and where most of them lie."""

    def __init__(self, shared: Shared, name: str) -> None:
        self._shared = shared
        self._name = name
        self._own: deque[float] = deque(maxlen=_WINDOW)

    def add(self, value: float) -> None:
        """Take the next one."""
        self._own.append(value)
        self._shared.note(self._name, value)

    def quantiles(self, *shares: float) -> list[float | None]:
        """Return the value that each share of them does not exceed; None where there are none."""
        ordered = sorted(self._shared.latest(self._name))
        if not ordered:
            return [None] * len(shares)
        return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in shares]

    def own_mean(self) -> float | None:
        """Return the mean of this worker's; None where there are none."""
        return sum(self._own) / len(self._own) if self._own else None


class Latency:
    """Seconds to an answer's first byte, and to its last; `name` is that of who answers."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.first = Window(shared, f"{name}, first")
        self.whole = Window(shared, f"{name}, whole")

    def view(self) -> LatencyView:
        """Return medians and 95th percentiles."""
        first_p50_s, first_p95_s = self.first.quantiles(0.5, 0.95)
        whole_p50_s, whole_p95_s = self.whole.quantiles(0.5, 0.95)
        return LatencyView(
            first_p50_s=first_p50_s,
            first_p95_s=first_p95_s,
            whole_p50_s=whole_p50_s,
            whole_p95_s=whole_p95_s,
        )


class Health:
    """One backend's health, as this worker and those it shares with know it."""

    def __init__(
        self,
        upstream: Upstream,
        shared: Shared,
        config: BreakerConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.latency = Latency(shared, f"backend {upstream.name}")
        self.trouble: str | None = None
        self._upstream = upstream
        self._row = upstream.row
        self._counts = f"backend {upstream.name}"
        self._shared = shared
        self._config = config
        self._clock = clock
        self._rests_until = 0.0
        self._is_full = False
        self._found: str | None = None
        self._has_answered = False

    @property
    def name(self) -> str:
        """The backend's name."""
        return self._upstream.name

    @property
    def _is_lost(self) -> bool:
        """Whether the last probe failed, and nothing was heard since."""
        return self._found is not None

    @property
    def num_in_flight(self) -> int:
        """How many requests it works at."""
        return self._shared.num_in_flight(self._row)

    @property
    def is_overloaded(self) -> bool:
        """Whether it was asked too much and wants to be left alone for a while."""
        return self._is_full and self._clock() < self._rests_until

    @property
    def state(self) -> State:
        """How it is, as far as probes and answers have told."""
        is_local = self._upstream.is_local
        if is_local and not self._has_answered:
            return "loading"
        if is_local and self._is_lost:
            return "restarting"
        # One that is full is ready, and so is one that the next request is to try again: were it
        # not, nobody would send that request.
        is_open = breakers.state_of(self._shared.read_breaker(self._row), self._clock()) == "open"
        is_there = self._has_answered and not self._is_lost and not is_open
        return "ready" if is_there else "unreachable"

    def take_over(self, earlier: "Health") -> None:
        """Know what was known of the same server in an earlier configuration."""
        self.trouble = earlier.trouble
        self._is_full, self._rests_until = earlier._is_full, earlier._rests_until
        self._found = earlier._found
        self._has_answered = earlier._has_answered

    def may_ask(self) -> bool:
        """Tell whether it is worth asking now."""
        now = self._clock()
        if now < self._rests_until:
            return False
        return breakers.may_pass(self._shared.read_breaker(self._row), now, self._config)

    def wait_s(self) -> float:
        """Return how long it is left alone still."""
        now = self._clock()
        until = max(self._rests_until, self._shared.read_breaker(self._row).open_until)
        return max(0.0, until - now)

    def note_sent(self) -> None:
        """Count a request that goes to it."""
        self._shared.count(self._counts, (1,))
        if self._shared.read_breaker(self._row).num_trips:
            now = self._clock()
            self._change(lambda breaker: breakers.after_sending(breaker, now))

    def note_success(self, first_s: float | None = None, whole_s: float | None = None) -> None:
        """Count an answer, and the seconds it took."""
        if first_s is not None:
            self.latency.first.add(first_s)
        if whole_s is not None:
            self.latency.whole.add(whole_s)
        self.trouble = self._found = None
        self._has_answered = True
        now = self._clock()
        if breakers.is_calm(self._shared.read_breaker(self._row), now, self._config):
            self._shared.count_good(self._row)
        else:
            self._change(lambda breaker: breakers.after_success(breaker, now, self._config))

    def note_fault(self, fault: Fault) -> None:
        """Count a failure; one that says when to come again is left alone until then."""
        self._shared.count(self._counts, (0, 1))
        self.trouble = str(fault)
        now = self._clock()
        if fault.retry_after_s is not None:
            self._rests_until = max(self._rests_until, now + fault.retry_after_s)
            self._is_full = fault.kind == "busy"
        # Full, or loading still, but alive; and one client with a path or a text that it does not
        # take must not shut all others out.
        if fault.kind in ("busy", "unready") or fault.is_of_request:
            self.note_left()
            return
        self._change(lambda breaker: breakers.after_failure(breaker, now, self._config))

    def note_failover(self) -> None:
        """Count a stream of its that another one went on with."""
        self._shared.count(self._counts, (0, 0, 1))

    def note_left(self) -> None:
        """Take it that a request ended without telling anything: the next one may tell."""
        if self._shared.read_breaker(self._row).probed_at:
            self._change(breakers.after_leaving)

    def note_probe(self, trouble: str | None) -> None:
        """Take what a probe found; one that failed says so, but only requests open the breaker."""
        if trouble is not None or self.trouble == self._found:
            # What a request told of stays until another one is answered.
            self.trouble = trouble
        self._found = trouble
        self._has_answered = self._has_answered or not self._is_lost

    def view(self, num_waiting: int) -> BackendView:
        """Return all of it; `num_waiting` wait for a place at it or at one like it."""
        config = self._upstream.config
        num_requests, num_errors, num_failovers, *_ = self._shared.counted(self._counts)
        state = breakers.state_of(self._shared.read_breaker(self._row), self._clock())
        return BackendView(
            name=self.name,
            address=config.address,
            dialect=config.dialect,
            is_local=self._upstream.is_local,
            is_up=state == "closed" and not self._is_lost,
            breaker=state,
            retry_in_s=self.wait_s() or None,
            trouble=self.trouble,
            weight=config.weight,
            max_concurrent=config.max_concurrent,
            num_in_flight=self.num_in_flight,
            num_waiting=num_waiting,
            num_requests=int(num_requests),
            num_errors=int(num_errors),
            num_failovers=int(num_failovers),
            latency=self.latency.view(),
        )

    def _change(self, change: Callable[[Breaker], Breaker]) -> None:
        self._shared.change_breaker(self._row, change)
