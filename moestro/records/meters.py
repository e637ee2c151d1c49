"""What each key has left, for all workers of a host: rates, requests under way, budgets.

A request reserves what it may cost when it begins, and settles what it did cost when it ends; both
in one turn of the lock, so that no two workers give away the same dollar. Knows no database: what
is spent elsewhere comes in through `raise_spent`. Next: shared.py, api/bucket.py.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from moestro.api.bucket import Bucket
from moestro.api.key_terms import KeyTerms
from moestro.errors import CapacityError, QuotaError
from moestro.records.periods import end_of, period_of
from moestro.records.shared import SharedFile

_BUSY_RETRY_S = 1.0
# Places of a row's common numbers, of which a bucket takes two; and of each worker's own.
_USED, _REQUESTS, _, _TOKENS, _, _PERIOD, _SPENT, _SPENT_TOKENS = range(8)
_OPEN, _HELD, _HELD_TOKENS = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a request may cost at most, as far as one can tell before it is answered."""

    num_tokens: int = 0
    cost_usd: float = 0.0


_NOTHING = Estimate()


@dataclass(slots=True)
class Hold:
    """What a request under way holds of its key's means."""

    name: str
    period: str
    estimate: Estimate
    tokens_per_minute: int | None
    is_settled: bool = False


class Meters:
    """Keys' means by name, shared by all workers."""

    def __init__(
        self,
        file: SharedFile,
        *,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._rows = file.keys
        self._cells = file.cells
        self._clock = clock
        self._calendar = calendar

    def hold(
        self, terms: KeyTerms, estimate: Estimate | None, spent: tuple[float, int] = (0, 0)
    ) -> Hold:
        """Reserve an estimate, or say why not; `spent` is what a row that is new starts with.

        Without an estimate the budget is not asked.
        """
        is_free, estimate = estimate is None, estimate or _NOTHING
        now, moment = self._clock(), self._calendar()
        period = period_of(terms.budget_period, moment)
        with self._file.lock:
            place = self._place(terms.name, period, spent)
            self._check_open(place, terms)
            if not is_free:
                self._check_budget(place, terms, estimate, moment)
            self._take_rates(place, terms, estimate, now)
            self._cells[place + _USED] = now
            self._change_own(place, 1, estimate.cost_usd, estimate.num_tokens)
        return Hold(terms.name, period, estimate, terms.tokens_per_minute)

    def settle(self, hold: Hold, cost_usd: float, num_tokens: int) -> None:
        """Give back what a request held, and count what it used; a second time changes nothing."""
        if hold.is_settled:
            return
        hold.is_settled = True
        now = self._clock()
        with self._file.lock:
            place = self._rows.find(hold.name)
            if place is None:
                # Only where the supervisor took this worker for dead.
                return
            self._change_own(place, -1, -hold.estimate.cost_usd, -hold.estimate.num_tokens)
            # What began in a period that is over counts there, and there only the database does.
            if self._cells[place + _PERIOD] == _period_number(hold.period):
                self._cells[place + _SPENT] += cost_usd
                self._cells[place + _SPENT_TOKENS] += num_tokens
            if hold.tokens_per_minute is not None:
                surplus = hold.estimate.num_tokens - num_tokens
                self._bucket(place + _TOKENS, hold.tokens_per_minute).take(-surplus, now)

    def raise_spent(self, name: str, period: str, cost_usd: float, num_tokens: int) -> None:
        """Learn what was spent in all, here and elsewhere; it never shrinks within a period."""
        with self._file.lock:
            place = self._rows.find(name)
            if place is None or self._cells[place + _PERIOD] != _period_number(period):
                return
            for cell, amount in ((_SPENT, cost_usd), (_SPENT_TOKENS, num_tokens)):
                self._cells[place + cell] = max(self._cells[place + cell], amount)

    def spent(self, name: str, period: str) -> tuple[float, int]:
        """Return what a key spent in a period as far as it is known here."""
        with self._file.lock:
            place = self._rows.find(name)
            if place is None or self._cells[place + _PERIOD] != _period_number(period):
                return 0.0, 0
            return self._cells[place + _SPENT], int(self._cells[place + _SPENT_TOKENS])

    def _place(self, name: str, period: str, spent: tuple[float, int]) -> int:
        number = _period_number(period)
        place = self._rows.find(name)
        if place is None:
            place = self._rows.add(name)
            self._cells[place + _REQUESTS] = self._cells[place + _TOKENS] = math.inf
            self._start_period(place, number, spent)
        elif self._cells[place + _PERIOD] != number:
            self._start_period(place, number, spent)
        return place

    def _start_period(self, place: int, number: float, spent: tuple[float, int]) -> None:
        self._cells[place + _PERIOD] = number
        self._cells[place + _SPENT], self._cells[place + _SPENT_TOKENS] = spent

    def _check_open(self, place: int, terms: KeyTerms) -> None:
        limit = terms.concurrent_requests
        if limit is None:
            return
        num_open = int(self._rows.total(place, _OPEN))
        if num_open >= limit:
            message = f"{num_open} requests are under way, your limit: wait for one of them"
            raise CapacityError(message, _BUSY_RETRY_S)

    def _check_budget(self, place: int, terms: KeyTerms, estimate: Estimate, moment: float) -> None:
        cells, total = self._cells, self._rows.total
        if terms.budget_usd is not None:
            spent = cells[place + _SPENT]
            wanted = total(place, _HELD) + estimate.cost_usd
            if spent >= terms.budget_usd or spent + wanted > terms.budget_usd:
                shown = f"${spent:.4f} of ${terms.budget_usd:.4f}"
                raise _too_poor(terms, shown, f"${wanted:.4f}", moment)
        if terms.budget_tokens is not None:
            spent_tokens = cells[place + _SPENT_TOKENS]
            wanted = total(place, _HELD_TOKENS) + estimate.num_tokens
            if spent_tokens >= terms.budget_tokens or spent_tokens + wanted > terms.budget_tokens:
                shown = f"{spent_tokens:.0f} of {terms.budget_tokens} tokens"
                raise _too_poor(terms, shown, f"{wanted:.0f}", moment)

    def _take_rates(self, place: int, terms: KeyTerms, estimate: Estimate, now: float) -> None:
        # A request that is larger than a whole minute's tokens passes when nothing is missing.
        tokens = min(estimate.num_tokens, terms.tokens_per_minute or 0)
        wanted = (
            (_REQUESTS, terms.requests_per_minute, 1, "requests"),
            (_TOKENS, terms.tokens_per_minute, max(1, tokens), "tokens"),
        )
        for cell, limit, amount, unit in wanted:
            wait_s = 0.0 if limit is None else self._bucket(place + cell, limit).wait_s(amount, now)
            if wait_s > 0:
                message = f"your limit is {limit} {unit} per minute: try again in {wait_s:.1f} s"
                raise CapacityError(message, wait_s)
        if terms.requests_per_minute is not None:
            self._bucket(place + _REQUESTS, terms.requests_per_minute).take(1, now)
        if terms.tokens_per_minute is not None:
            self._bucket(place + _TOKENS, terms.tokens_per_minute).take(estimate.num_tokens, now)

    def _bucket(self, place: int, per_minute: int) -> Bucket:
        return Bucket(per_minute, self._cells, place)

    def _change_own(self, place: int, count: int, cost_usd: float, num_tokens: int) -> None:
        own, cells = self._rows.own(place), self._cells
        for cell, change in ((_OPEN, count), (_HELD, cost_usd), (_HELD_TOKENS, num_tokens)):
            cells[own + cell] = max(0.0, cells[own + cell] + change)
        if cells[own + _OPEN] == 0:
            # Sums of fractions leave crumbs, which would add up.
            cells[own + _HELD] = cells[own + _HELD_TOKENS] = 0.0


def _too_poor(terms: KeyTerms, spent: str, wanted: str, moment: float) -> QuotaError:
    end = end_of(terms.budget_period, moment)
    until = "" if end is None else " or wait for the next one"
    return QuotaError(
        f"the key {terms.name} has spent {spent} of its budget per {terms.budget_period}, and"
        f" requests under way with this one may take {wanted}: ask its owner for more{until}",
        None if end is None else end - moment,
    )


def _period_number(period: str) -> float:
    if period == "total":
        return 0.0
    digits = period.replace("-", "")
    # Days and months never have the same number, and later ones have greater ones.
    return float(digits) if len(digits) == 8 else float(digits) / 100.0
