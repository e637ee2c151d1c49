"""A circuit breaker: whether a backend that failed is left alone, and for how long.

Pure: a state, what happened and the time give the next state, so that workers can share it. Next:
health.py.
"""

from typing import NamedTuple

from moestro.api.fleet_view import BreakerState
from moestro.gateway.config import BreakerConfig

_MOST_DOUBLINGS = 16


class Breaker(NamedTuple):
    """One backend's breaker; all times are of one clock, and 0 is never.

    `num_row` counts failures since the last success, `num_good` and `num_bad` what happened since
    `window_at`. It is open until `open_until`, and has been so `num_trips` times without a success
    between. `probed_at` is when the one request was let through that shall tell.
    """

    num_row: int = 0
    num_good: int = 0
    num_bad: int = 0
    window_at: float = 0.0
    open_until: float = 0.0
    num_trips: int = 0
    probed_at: float = 0.0


def state_of(breaker: Breaker, now: float) -> BreakerState:
    """Return whether it is open."""
    if breaker.num_trips == 0:
        return "closed"
    return "open" if now < breaker.open_until else "half_open"


def may_pass(breaker: Breaker, now: float, config: BreakerConfig) -> bool:
    """Tell whether a request may be sent: of a half-open one, one at a time."""
    state = state_of(breaker, now)
    if state == "half_open":
        # One that was let through and never told how it ended must not block it for ever.
        return breaker.probed_at == 0 or now - breaker.probed_at > config.max_open_s
    return state == "closed"


def after_sending(breaker: Breaker, now: float) -> Breaker:
    """Return it after a request was let through."""
    if breaker.num_trips == 0:
        return breaker
    return breaker._replace(probed_at=now)


def after_leaving(breaker: Breaker) -> Breaker:
    """Return it after a request that told nothing of how it ended: the next one may tell."""
    return breaker._replace(probed_at=0.0)


def after_success(breaker: Breaker, now: float, config: BreakerConfig) -> Breaker:
    """Return it after an answer: closed."""
    if breaker.num_trips:
        return Breaker(num_good=1, window_at=now)
    breaker = _turn_window(breaker, now, config)
    return breaker._replace(num_row=0, num_good=breaker.num_good + 1)


def is_calm(breaker: Breaker, now: float, config: BreakerConfig) -> bool:
    """Tell whether all that another success changes is their number."""
    is_closed = breaker.num_trips == 0 and breaker.num_row == 0
    return is_closed and now - breaker.window_at <= config.window_s


def after_failure(breaker: Breaker, now: float, config: BreakerConfig) -> Breaker:
    """Return it after a failure: open, if that was one too many."""
    breaker = _turn_window(breaker, now, config)
    num_row, num_bad = breaker.num_row + 1, breaker.num_bad + 1
    counted = breaker._replace(num_row=num_row, num_bad=num_bad)
    if state_of(breaker, now) == "open":
        # A request that was under way as it opened: no news.
        return counted
    is_many = num_bad >= config.failures
    is_share = is_many and num_bad >= config.share * (num_bad + breaker.num_good)
    if not (breaker.num_trips or num_row >= config.failures or is_share):
        return counted
    doublings = min(breaker.num_trips, _MOST_DOUBLINGS)
    open_s = min(config.max_open_s, config.open_s * 2**doublings)
    num_trips = breaker.num_trips + 1
    return counted._replace(open_until=now + open_s, num_trips=num_trips, probed_at=0.0)


def _turn_window(breaker: Breaker, now: float, config: BreakerConfig) -> Breaker:
    if now - breaker.window_at <= config.window_s:
        return breaker
    return breaker._replace(num_good=0, num_bad=0, window_at=now)
