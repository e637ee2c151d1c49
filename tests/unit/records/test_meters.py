"""What a key has left: rates refill, budgets begin anew, and what was held is given back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.api.key_terms import KeyTerms
from moestro.errors import CapacityError, QuotaError
from moestro.records.meters import Estimate, Meters
from moestro.records.periods import day_of, end_of, period_of, periods_of
from moestro.records.shared import SharedFile, create_shared
from tests.unit.records.made import NOON

DAY_S = 86_400


class Clocks:
    """Time that passes when a test says so."""

    def __init__(self, path: Path) -> None:
        self.now = 1000.0
        self.moment = NOON
        self.meters = Meters(
            SharedFile(path, 0), clock=lambda: self.now, calendar=lambda: self.moment
        )

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.moment += seconds


@pytest.fixture
def clocks() -> Iterator[Clocks]:
    path = create_shared(1, num_keys=4)
    yield Clocks(path)
    path.unlink()


def test_requests_refill_as_time_passes(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", requests_per_minute=6)
    for _ in range(6):
        clocks.meters.hold(terms, Estimate())
    with pytest.raises(CapacityError, match="6 requests per minute") as caught:
        clocks.meters.hold(terms, Estimate())
    assert caught.value.retry_after_s == pytest.approx(10)
    clocks.wait(caught.value.retry_after_s + 1e-6)
    clocks.meters.hold(terms, Estimate())
    with pytest.raises(CapacityError):
        clocks.meters.hold(terms, Estimate())


def test_tokens_not_used_are_given_back_and_more_are_a_debt(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", tokens_per_minute=100)
    hold = clocks.meters.hold(terms, Estimate(num_tokens=100))
    with pytest.raises(CapacityError, match="100 tokens per minute"):
        clocks.meters.hold(terms, Estimate(num_tokens=1))
    clocks.meters.settle(hold, 0, 30)
    hold = clocks.meters.hold(terms, Estimate(num_tokens=70))
    clocks.meters.settle(hold, 0, 170)
    with pytest.raises(CapacityError) as caught:
        clocks.meters.hold(terms, Estimate(num_tokens=1))
    assert caught.value.retry_after_s == pytest.approx(60.6)


def test_a_request_larger_than_a_minute_passes_when_nothing_is_missing(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", tokens_per_minute=100)
    clocks.meters.hold(terms, Estimate(num_tokens=1000))
    clocks.wait(60)
    with pytest.raises(CapacityError):
        clocks.meters.hold(terms, Estimate(num_tokens=1000))


def test_what_is_held_counts_until_it_is_settled_and_only_once(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", budget_usd=1.0)
    first = clocks.meters.hold(terms, Estimate(cost_usd=0.6))
    with pytest.raises(QuotaError, match=r"spent \$0\.0000 of \$1\.0000"):
        clocks.meters.hold(terms, Estimate(cost_usd=0.6))
    clocks.meters.settle(first, 0.25, 10)
    clocks.meters.settle(first, 0.25, 10)
    assert clocks.meters.spent("alice", "2026-11") == (0.25, 10)
    clocks.meters.hold(terms, Estimate(cost_usd=0.6))


def test_a_budget_that_is_spent_lets_not_even_free_requests_in(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", budget_tokens=10)
    clocks.meters.settle(clocks.meters.hold(terms, Estimate()), 0, 10)
    with pytest.raises(QuotaError, match="10 of 10 tokens"):
        clocks.meters.hold(terms, Estimate())


@pytest.mark.parametrize(("period", "days"), [("day", 1), ("month", 5)])
def test_a_new_period_brings_a_new_budget(clocks: Clocks, period: str, days: int) -> None:
    terms = KeyTerms(name="alice", budget_usd=1.0, budget_period=period)  # type: ignore[arg-type]
    late = clocks.meters.hold(terms, Estimate())
    clocks.meters.settle(clocks.meters.hold(terms, Estimate()), 1.0, 0)
    with pytest.raises(QuotaError) as caught:
        clocks.meters.hold(terms, Estimate())
    assert caught.value.resets_in_s == pytest.approx(days * DAY_S - DAY_S / 2)
    clocks.wait(days * DAY_S)
    clocks.meters.hold(terms, Estimate(cost_usd=1.0))
    # What began before the new period is no cost of it.
    clocks.meters.settle(late, 5.0, 0)
    assert clocks.meters.spent("alice", period_of(terms.budget_period, clocks.moment))[0] == 0


def test_a_total_never_begins_anew(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", budget_usd=1.0, budget_period="total")
    clocks.meters.settle(clocks.meters.hold(terms, Estimate()), 1.0, 0)
    clocks.wait(400 * DAY_S)
    with pytest.raises(QuotaError) as caught:
        clocks.meters.hold(terms, Estimate())
    assert caught.value.resets_in_s is None


def test_what_others_spent_counts_and_never_shrinks(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", budget_usd=1.0)
    clocks.meters.settle(clocks.meters.hold(terms, Estimate()), 0.25, 5)
    clocks.meters.raise_spent("alice", "2026-11", 0.75, 3)
    assert clocks.meters.spent("alice", "2026-11") == (0.75, 5)
    clocks.meters.raise_spent("alice", "2026-11", 0.5, 0)
    clocks.meters.raise_spent("alice", "2026-10", 99, 99)
    clocks.meters.raise_spent("bob", "2026-11", 99, 99)
    assert clocks.meters.spent("alice", "2026-11") == (0.75, 5)
    assert clocks.meters.spent("bob", "2026-11") == (0.0, 0)


def test_a_new_row_starts_with_what_was_spent_before(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", budget_usd=1.0)
    with pytest.raises(QuotaError):
        clocks.meters.hold(terms, Estimate(), (1.0, 0))


def test_a_settled_request_whose_row_is_gone_is_nothing(clocks: Clocks) -> None:
    terms = KeyTerms(name="alice", budget_usd=1.0)
    hold = clocks.meters.hold(terms, Estimate())
    clocks.meters._file.clear_worker(0)
    for name in "abcd":
        clocks.meters.hold(KeyTerms(name=name, budget_usd=1.0), Estimate())
    clocks.meters.settle(hold, 1.0, 1)
    assert clocks.meters.spent("alice", "2026-11") == (0.0, 0)


@given(
    st.lists(st.tuples(st.floats(0, 0.4), st.floats(0, 1), st.booleans()), min_size=1, max_size=60)
)
def test_spending_never_passes_a_budget_if_estimates_hold(
    steps: list[tuple[float, float, bool]],
) -> None:
    path = create_shared(1, num_keys=4)
    try:
        clocks = Clocks(path)
        terms = KeyTerms(name="alice", budget_usd=1.0)
        holds = []
        for estimate, share, ends in steps:
            try:
                hold = clocks.meters.hold(terms, Estimate(cost_usd=estimate))
                holds.append((hold, estimate * share))
            except QuotaError:
                pass
            if ends and holds:
                hold, cost = holds.pop()
                clocks.meters.settle(hold, cost, 0)
        for hold, cost in holds:
            clocks.meters.settle(hold, cost, 0)
        assert clocks.meters.spent("alice", "2026-11")[0] <= 1.0 + 1e-9
    finally:
        path.unlink()


@given(st.floats(0, 4e9))
def test_every_moment_lies_in_its_periods_and_before_their_ends(moment: float) -> None:
    assert periods_of(moment) == (day_of(moment), day_of(moment)[:7], "total")
    for period in ("day", "month"):
        end = end_of(period, moment)
        assert end is not None
        assert moment < end
        assert period_of(period, end) != period_of(period, moment)
        assert period_of(period, end - 1) == period_of(period, moment)
    assert end_of("total", moment) is None
