"""What is kept of requests, as pages and `/v1` routes see it: decisions, usage, keys, losses.

Plain values and the protocol of whoever keeps them. Knows no database. Next: record.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from moestro.api.key_terms import KeyTerms
from moestro.api.record import Outcome, Record

# "score": an application's verdict on an answer; "audit": the same request answered twice.
ScoreKind = Literal["score", "audit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionFilter:
    """Which decisions to show: all that is set must match; times are in seconds since 1970."""

    caller: str | None = None
    asked: str | None = None
    model: str | None = None
    backend: str | None = None
    outcome: Outcome | None = None
    request_id: str | None = None
    conversation: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedDecision:
    """A record as it is kept, with its number; later ones have greater numbers.

    `prompt` and `answer` are None unless they are kept, and in lists always.
    """

    id: int
    record: Record
    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionPage:
    """Decisions, newest first; `before` asks for the next page, None on the last one."""

    decisions: tuple[RecordedDecision, ...]
    before: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageRow:
    """What one key used of one model on one day (UTC, like "2026-11-26").

    `caller` is "" where no key was asked for, `model` "" where nobody answered.
    `strongest_cost_usd` is what the strongest model would have cost, as far as it is known, and
    `compared_cost_usd` what those same requests did cost.
    """

    caller: str
    model: str
    day: str
    num_requests: int
    num_failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    wasted_tokens: int
    cost_usd: float
    compared_cost_usd: float
    strongest_cost_usd: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficRow:
    """One model's part of all that was answered in a span of days."""

    model: str
    num_requests: int
    share: float
    cost_usd: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredOutcome:
    """How good an answer was, 0 to 1; the order of ids is the order of arrival.

    An "audit" has both the score of what the policy chose (`model`) and `strongest_score`.
    """

    id: int
    at: float
    kind: ScoreKind
    request_id: str
    caller: str | None
    model: str | None
    score: float
    strongest_score: float | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyView:
    """A key without the key: its terms, and what it has spent in the present period."""

    terms: KeyTerms
    created_at: float
    revoked_at: float | None
    is_usable: bool
    spent_usd: float
    spent_tokens: int
    resets_at: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordsHealth:
    """How keeping goes, in this process.

    `lost_records` were dropped by any worker since the server's start: because the queue was full,
    or because a worker was killed before they were written. `writer_restarts` counts how often the
    process that writes them was started again, which loses none.
    `trouble` says in one line why the database cannot be written, None where it can.
    """

    is_reachable: bool
    waiting_records: int
    written_records: int
    lost_records: int
    trouble: str | None
    keeps_prompts: bool
    retention_days: int | None
    writer_restarts: int = 0
    cache: Mapping[str, int] = field(default_factory=dict)


class RecordView(Protocol):
    """Reads what is kept; raises StorageError where the database cannot be read.

    Nothing here blocks the event loop.
    """

    async def decisions(
        self, chosen: DecisionFilter, *, before: int | None = None, limit: int = 50
    ) -> DecisionPage:
        """Return recent decisions, newest first."""

    async def decision(self, number: int) -> RecordedDecision | None:
        """Return one decision, with its texts where they are kept."""

    async def usage(
        self, *, since: str | None = None, until: str | None = None, caller: str | None = None
    ) -> Sequence[UsageRow]:
        """Return usage by key, model and day, both days included, newest day first."""

    async def traffic(self, *, since: str | None = None) -> Sequence[TrafficRow]:
        """Return each model's share of what was answered, the greatest first."""

    async def outcomes(
        self, *, kind: ScoreKind | None = None, before: int | None = None, limit: int = 200
    ) -> Sequence[ScoredOutcome]:
        """Return scores and audits, newest first."""

    async def keys(self) -> Sequence[KeyView]:
        """Return all keys by name, revoked ones among them."""

    async def add_key(self, terms: KeyTerms) -> str:
        """Make a key and return it: it is shown this once and kept nowhere."""

    async def change_key(self, terms: KeyTerms) -> None:
        """Give a known key other terms."""

    async def revoke_key(self, name: str) -> None:
        """End a key; requests under way go on."""

    def health(self) -> RecordsHealth:
        """Return how keeping goes; touches no disk."""
