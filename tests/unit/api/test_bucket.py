"""Token buckets refill as promised, whatever is taken or put back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.api.bucket import Bucket


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


def test_what_is_put_back_beyond_the_brim_is_gone() -> None:
    cells = [math.inf, 0.0]
    Bucket(60, cells).take(10, now=0.0)
    Bucket(60, cells).take(-30, now=0.0)
    assert Bucket(200, cells).level(0.0) == 60


def test_buckets_over_the_same_cells_are_one() -> None:
    cells = [math.inf, 0.0, math.inf, 0.0]
    Bucket(60, cells, 2).take(20, now=0.0)
    assert Bucket(60, cells, 2).level(0.0) == 40
    assert Bucket(60, cells).level(0.0) == 60
