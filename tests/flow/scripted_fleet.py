"""A lively fleet that is not there: views for a gateway's pages, with names that try to be markup.

Counts grow with time, so that rates show. Next: test_fleet_pages.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from moestro.api.fleet_view import BackendView, FleetView, LatencyView, ModelView
from moestro.api.key_terms import KeyTerms
from moestro.api.policy_view import CurvePoint, FloorView, PolicyView, WatchView
from moestro.api.record import Record
from moestro.api.record_view import (
    DecisionFilter,
    DecisionPage,
    KeyView,
    RecordedDecision,
    RecordsHealth,
    RecordView,
    ScoredOutcome,
    ScoreKind,
    TrafficRow,
    UsageRow,
)
from moestro.errors import ConfigError, StorageError

MARKUP = "<img src=x onerror=\"document.title='broken in'\">"
LATENCY = LatencyView(first_p50_s=0.084, first_p95_s=0.31, whole_p50_s=1.42, whole_p95_s=4.9)


def backend(name: str, **changes: object) -> BackendView:
    """Return a server that is well, but for the changes."""
    well = BackendView(
        name=name, address="http://10.0.0.5:8000", dialect="openai", is_local=False, is_up=True,
        breaker="closed", retry_in_s=None, trouble=None, weight=1.0, max_concurrent=64,
        num_in_flight=11, num_waiting=0, num_requests=10421, num_errors=12, num_failovers=3,
        latency=LATENCY,
    )  # fmt: skip
    return replace(well, **changes)  # type: ignore[arg-type]


def model(name: str, count: int, **changes: object) -> ModelView:
    """Return a model that auto may choose, but for the changes."""
    plain = ModelView(
        name=name, is_local=False, is_auto=True, is_up=True, state="ready", context_length=32768,
        input_usd_per_mtok=2.0, output_usd_per_mtok=6.0, share=0.2, num_requests=count,
        num_auto=count // 2, num_errors=4, num_in_flight=3, num_waiting=0,
        prompt_tokens=count * 310, completion_tokens=count * 120, cost_usd=count * 0.0013,
        latency=LATENCY, backends=(backend(f"{name}/0"),),
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


@dataclass
class ScriptedFleet:
    """A fleet of three, one server of which is left alone."""

    began_at: float = field(default_factory=time.time)

    def view(self) -> FleetView:
        """Return it with counts that grow by some tens a second."""
        age = time.time() - self.began_at
        count = int(12_000 + 37 * age + 9 * (age % 5))
        ill = backend(
            "large/1", address="https://eu.example.org", is_up=False, breaker="open",
            retry_in_s=14.2, trouble=f"status 503 from {MARKUP}", num_in_flight=0, num_errors=94,
        )  # fmt: skip
        small = model(
            "small", count, is_local=True, share=0.71, input_usd_per_mtok=0.05,
            output_usd_per_mtok=0.1, cost_usd=0.34,
            backends=(backend("small/0", address="http://127.0.0.1:41873", is_local=True,
                              num_in_flight=58, num_waiting=4),),
        )  # fmt: skip
        large = model("large", count // 4, share=0.21, backends=(backend("large/0"), ill))
        odd = model(
            MARKUP + "-a-model-whose-name-is-long", 900, share=0.08, is_auto=False,
            input_usd_per_mtok=0.0, output_usd_per_mtok=0.0, latency=LatencyView(),
            context_length=0, backends=(backend("odd/0", latency=LatencyView(), num_requests=0,
                                                dialect="anthropic", num_errors=0),),
        )  # fmt: skip
        return FleetView(
            models=(small, large, odd), has_policy=True, strongest="large",
            num_requests=count + count // 4 + 900, num_failovers=41, num_refused=17,
            since=self.began_at - 3600,
        )  # fmt: skip


@dataclass
class ScriptedPolicy:
    """A policy with a curve; `is_held` says whether its floor still holds."""

    is_held: bool = True
    has_costs: bool = True
    has_floor: bool = True

    def view(self) -> PolicyView:
        """Return it."""
        curve = tuple(self._point(step / 20) for step in range(21))
        floor = FloorView(
            floor=0.95, confidence=0.95, method="learn-then-test, betting on paired scores",
            promise="Keeps at least 0.95 of the strongest model's quality with confidence 0.95, on"
            " traffic like the 1,204 calibration rows",
            num_rows=1204, threshold=0.113, strong_share=0.382, quality_kept=0.968, level=0.0099,
            p_value=0.0031, bound=0.951, calibrated_at=1_764_000_000.0,
        )  # fmt: skip
        watch = WatchView(
            name="floor", is_held=self.is_held, evidence=2.4 if self.is_held else 21.0,
            alarm_at=20.0, num_observed=417, quality_kept=0.957,
            lost_at=None if self.is_held else time.time() - 720,
        )  # fmt: skip
        shift = WatchView(
            name="shift", is_held=True, evidence=0.8, alarm_at=100.0, num_observed=15_402
        )
        return PolicyView(
            name="mine", digest="9f2c11d0", models=("small", "large"), strongest="large",
            curve=curve, curve_rows=5_430, has_cascade=True, threshold=0.113,
            floor=floor if self.has_floor else None,
            watches=(watch, shift), audit_share=0.02, judge="outcomes",
            recalibrate="moestro policy calibrate policies/mine outcomes.csv --floor 0.95",
        )  # fmt: skip

    def _point(self, share: float) -> CurvePoint:
        quality = 0.58 + 0.22 * (1 - (1 - share) ** 2.2)
        return CurvePoint(
            strong_share=share, quality=quality, quality_low=quality - 0.012,
            quality_high=quality + 0.012,
            cost_usd=0.03 + 1.31 * share if self.has_costs else None,
        )  # fmt: skip


def _record(number: int, now: float) -> Record:
    is_strong, is_bad = number % 4 == 0, number % 17 == 0
    return Record(
        request_id=f"request-{number}", began_at=now - 400 + number,
        path="/v1/chat/completions", caller=("app", "ali", MARKUP)[number % 3],
        asked="auto" if number % 5 else "large",
        model="" if is_bad else ("small", "large")[is_strong],
        backend="" if is_bad else ("small/0", "large/1")[is_strong],
        reason=MARKUP if number % 50 == 1 else ("gain 0.31 over 0.11", "gain 0.02 under 0.11")[
            not is_strong
        ] if number % 5 else "named",
        outcome="failed" if is_bad else "answered", status=502 if is_bad else 200,
        is_streamed=number % 2 == 0, scores={"small": 0.61, "large": 0.83} if number % 5 else {},
        threshold=0.113 if number % 5 else None, prompt_tokens=310 + number,
        cached_tokens=128 if number % 7 == 0 else 0, completion_tokens=121,
        cost_usd=0.0 if is_bad else (0.0000276, 0.001346)[is_strong], strongest_cost_usd=0.001346,
        first_s=None if is_bad else 0.082, whole_s=1.4, num_attempts=3 if is_bad else 1,
        num_failovers=int(number % 23 == 0), error="every server refused" if is_bad else None,
        conversation="secret-hash", digest="secret-digest",
    )  # fmt: skip


class ScriptedRecords(RecordView):
    """Some hundred decisions, three keys and a month of usage, in memory."""

    def __init__(
        self, num_decisions: int = 400, *, is_broken: bool = False, num_restarts: int = 0
    ) -> None:
        now = time.time()
        self.num_restarts = num_restarts
        self.all = [
            RecordedDecision(id=n, record=_record(n, now)) for n in range(num_decisions, 0, -1)
        ]
        self.is_broken = is_broken
        self.views = {each.terms.name: each for each in _keys(now)}

    async def decisions(
        self, chosen: DecisionFilter, *, before: int | None = None, limit: int = 50
    ) -> DecisionPage:
        """Return what fits, newest first."""
        self._check()
        names = ("caller", "asked", "model", "outcome")
        wanted = {name: getattr(chosen, name) for name in names}
        fits = [
            each for each in self.all
            if all(v in (None, getattr(each.record, n)) for n, v in wanted.items())
            and (before is None or each.id < before)
            and (chosen.since is None or each.record.began_at >= chosen.since)
        ]  # fmt: skip
        page = tuple(fits[:limit])
        return DecisionPage(decisions=page, before=page[-1].id if len(fits) > limit else None)

    async def decision(self, number: int) -> RecordedDecision | None:
        """Return one decision."""
        return next((each for each in self.all if each.id == number), None)

    async def usage(
        self, *, since: str | None = None, until: str | None = None, caller: str | None = None
    ) -> Sequence[UsageRow]:
        """Return a month, by key, model and day."""
        self._check()
        days = [datetime.now(UTC) - timedelta(days=age) for age in range(30)]
        rows = [
            _usage(name, kind, day.strftime("%Y-%m-%d"), 40 + 7 * age % 31)
            for age, day in enumerate(days)
            for name in self.views
            for kind in ("small", "large")
        ]
        return [r for r in rows if (since is None or r.day >= since) and caller in (None, r.caller)]

    async def traffic(self, *, since: str | None = None) -> Sequence[TrafficRow]:
        """Return nothing: no page asks."""
        return []

    async def outcomes(
        self, *, kind: ScoreKind | None = None, before: int | None = None, limit: int = 200
    ) -> Sequence[ScoredOutcome]:
        """Return nothing: no page asks."""
        return []

    async def keys(self) -> Sequence[KeyView]:
        """Return all keys."""
        self._check()
        return [self.views[name] for name in sorted(self.views)]

    async def add_key(self, terms: KeyTerms) -> str:
        """Make a key whose text tells that it is none."""
        if terms.name in self.views:
            raise ConfigError(f"a key named {terms.name!r} exists: choose another name")
        self.views[terms.name] = _key(terms, time.time())
        return "mk-made-once"

    async def change_key(self, terms: KeyTerms) -> None:
        """Give a key other terms."""
        self.views[terms.name] = replace(self.views[terms.name], terms=terms)

    async def revoke_key(self, name: str) -> None:
        """End a key."""
        if name not in self.views:
            raise ConfigError(f"no key is named {name!r}: choose one of the page's")
        ended = replace(self.views[name], revoked_at=time.time(), is_usable=False)
        self.views[name] = ended

    def health(self) -> RecordsHealth:
        """Return whether it can be read."""
        return RecordsHealth(
            is_reachable=not self.is_broken, waiting_records=0, written_records=400,
            lost_records=12 if self.is_broken else 0,
            trouble="disk full" if self.is_broken else None, keeps_prompts=False,
            retention_days=90, writer_restarts=self.num_restarts,
        )  # fmt: skip

    def _check(self) -> None:
        if self.is_broken:
            raise StorageError("the database is locked")


def _key(terms: KeyTerms, now: float, usd: float = 0.0, tokens: int = 0) -> KeyView:
    return KeyView(
        terms=terms, created_at=now - 86_400 * 40, revoked_at=None, is_usable=True, spent_usd=usd,
        spent_tokens=tokens, resets_at=now + 86_400 * 5,
    )  # fmt: skip


def _keys(now: float) -> list[KeyView]:
    app = KeyTerms(name="app", budget_usd=50.0, budget_tokens=20_000_000, requests_per_minute=600)
    ali = KeyTerms(name="ali", is_admin=True)
    odd = KeyTerms(
        name=MARKUP, budget_usd=1.0, budget_period="day", allowed_models=("small",),
        tokens_per_minute=20_000, concurrent_requests=4,
    )  # fmt: skip
    return [_key(app, now, 43.1, 3_210_400), _key(ali, now, 0.82, 91_000), _key(odd, now, 1.04, 0)]


def _usage(caller: str, kind: str, day: str, count: int) -> UsageRow:
    cost = count * (0.0013 if kind == "large" else 0.00003)
    return UsageRow(
        caller=caller, model=kind, day=day, num_requests=count, num_failed=count // 40,
        prompt_tokens=count * 310, cached_tokens=0, completion_tokens=count * 120, wasted_tokens=9,
        cost_usd=cost, compared_cost_usd=cost, strongest_cost_usd=count * 0.0013,
    )  # fmt: skip
