"""A breaker: when a backend is left alone, for how long, and how it is let back. No clock runs."""

import pytest

from moestro.errors import ConfigError
from moestro.gateway.breaker import (
    Breaker,
    after_failure,
    after_sending,
    after_success,
    may_pass,
    state_of,
)
from moestro.gateway.config import BreakerConfig

CONFIG = BreakerConfig(failures=3, share=0.5, window_s=10, open_s=2, max_open_s=5)


def fail(breaker: Breaker, now: float, times: int = 1) -> Breaker:
    for _ in range(times):
        breaker = after_failure(breaker, now, CONFIG)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = fail(Breaker(), 1, 2)
    assert state_of(breaker, 1) == "closed"
    breaker = fail(breaker, 1)
    assert state_of(breaker, 1) == "open"
    assert not may_pass(breaker, 2.9, CONFIG)
    assert state_of(breaker, 3) == "half_open"


def test_a_success_ends_a_row_but_a_large_share_opens_it_too() -> None:
    breaker = after_success(fail(Breaker(), 1, 2), 1, CONFIG)
    assert state_of(fail(breaker, 1), 1) == "open"
    for _ in range(5):
        breaker = after_success(breaker, 1, CONFIG)
    assert state_of(fail(breaker, 1), 1) == "closed"


def test_what_is_long_ago_does_not_count() -> None:
    breaker = after_success(fail(Breaker(window_at=1), 1, 2), 1, CONFIG)
    assert state_of(fail(breaker, 20), 20) == "closed"


def test_one_request_is_let_through_to_see() -> None:
    breaker = fail(Breaker(), 0, 3)
    assert may_pass(breaker, 2, CONFIG)
    breaker = after_sending(breaker, 2)
    assert not may_pass(breaker, 2, CONFIG)
    assert may_pass(breaker, 8, CONFIG), "one that never ended blocks nobody for ever"
    assert state_of(after_success(breaker, 2, CONFIG), 2) == "closed"


def test_it_is_left_alone_longer_each_time_up_to_a_limit() -> None:
    breaker, now, waits = fail(Breaker(), 0, 3), 0.0, []
    for _ in range(4):
        waits.append(breaker.open_until - now)
        now = breaker.open_until
        breaker = fail(after_sending(breaker, now), now)
    assert waits == [2, 4, 5, 5]


def test_a_request_from_before_changes_nothing_once_it_is_open() -> None:
    breaker = fail(Breaker(), 0, 3)
    assert fail(breaker, 1).open_until == breaker.open_until
    assert after_sending(Breaker(), 1) == Breaker()


@pytest.mark.parametrize("share", [-0.1, 0, 1.01, 50, float("nan")])
def test_a_share_that_no_failures_can_reach_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"share is .*: it must be above 0 and at most 1"):
        BreakerConfig(share=share)


def test_a_share_of_one_opens_it_where_all_of_a_window_failed() -> None:
    config = BreakerConfig(failures=3, share=1)
    breaker = Breaker(num_good=0, num_bad=2)
    assert state_of(after_failure(breaker, 1, config), 1) == "open"
    assert state_of(after_failure(breaker._replace(num_good=1), 1, config), 1) == "closed"
