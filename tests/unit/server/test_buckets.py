"""Token buckets refill as promised, and the table of clients stays small."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.server.buckets import Bucket, OwnClients


def test_a_bucket_starts_full_and_refills_by_the_minute() -> None:
    bucket = Bucket.full(60, now=0.0)
    bucket.take(60, now=0.0)
    assert bucket.level(0.0) == 0
    assert bucket.level(30.0) == pytest.approx(30)
    assert bucket.level(3600.0) == 60


def test_a_debt_is_paid_off_by_waiting() -> None:
    bucket = Bucket.full(60, now=0.0)
    bucket.take(90, now=0.0)
    assert bucket.wait_s(1, now=0.0) == pytest.approx(31)
    assert bucket.full_in_s(now=0.0) == pytest.approx(90)
    assert bucket.wait_s(1, now=31.0) == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 5)), max_size=30))
def test_no_more_is_taken_than_the_rate_allows(steps: list[tuple[float, int]]) -> None:
    bucket, now, taken = Bucket.full(10, now=0.0), 0.0, 0
    for delay_s, amount in steps:
        now += delay_s
        if bucket.wait_s(amount, now) == 0:
            bucket.take(amount, now)
            taken += amount
    assert taken <= 10 + now * 10 / 60 + 1e-6


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket.full(60, now=100.0)
    bucket.take(60, now=100.0)
    assert bucket.level(50.0) == 0
    assert bucket.level(101.0) == pytest.approx(1)


def test_the_client_not_seen_for_longest_is_forgotten_first() -> None:
    clients = OwnClients(most=2)
    first = clients.find("a", None, None, 0.0)
    second = clients.find("b", None, None, 0.0)
    assert clients.find("a", None, None, 0.0) is first
    clients.find("c", None, None, 0.0)
    assert clients.find("a", None, None, 0.0) is first
    assert clients.find("b", None, None, 0.0) is not second


def test_a_client_that_comes_while_all_others_are_busy_is_remembered() -> None:
    clients = OwnClients(most=1)
    clients.find("a", None, None, 0.0).change_open(1)
    newcomer = clients.find("b", 1, None, 0.0)
    assert clients.find("b", 1, None, 0.0) is newcomer


def test_a_busy_client_is_not_forgotten() -> None:
    clients = OwnClients(most=1)
    busy = clients.find("a", None, None, 0.0)
    busy.change_open(1)
    for name in "bcd":
        clients.find(name, None, None, 0.0)
    assert clients.find("a", None, None, 0.0) is busy
    assert len(clients) <= 2
