"""Records as pages read them: the database's statements in threads, so that no stream waits.

Implements api/record_view.py. Next: records.py.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from moestro.api.key_terms import KeyTerms
from moestro.api.record_view import (
    DecisionFilter,
    DecisionPage,
    KeyView,
    RecordedDecision,
    RecordsHealth,
    ScoredOutcome,
    ScoreKind,
    TrafficRow,
    UsageRow,
)
from moestro.records import decisions, keys, outcomes, usage
from moestro.records.database import Database
from moestro.records.periods import end_of, period_of
from moestro.records.records import Records
from moestro.records.usage import Spending


class View:
    """A RecordView of one worker's records."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._database = records.database

    async def decisions(
        self, chosen: DecisionFilter, *, before: int | None = None, limit: int = 50
    ) -> DecisionPage:
        """Return recent decisions, newest first."""

        def read() -> DecisionPage:
            with self._database.read() as connection:
                return decisions.find_decisions(connection, chosen, before, limit)

        return await asyncio.to_thread(read)

    async def decision(self, number: int) -> RecordedDecision | None:
        """Return one decision, with its texts where they are kept."""

        def read() -> RecordedDecision | None:
            with self._database.read() as connection:
                return decisions.find_decision(connection, number)

        return await asyncio.to_thread(read)

    async def usage(
        self, *, since: str | None = None, until: str | None = None, caller: str | None = None
    ) -> Sequence[UsageRow]:
        """Return usage by key, model and day, both days included, newest day first."""

        def read() -> list[UsageRow]:
            with self._database.read() as connection:
                return usage.find_usage(connection, since, until, caller)

        return await asyncio.to_thread(read)

    async def traffic(self, *, since: str | None = None) -> Sequence[TrafficRow]:
        """Return each model's share of what was answered, the greatest first."""

        def read() -> list[TrafficRow]:
            with self._database.read() as connection:
                return usage.find_traffic(connection, since)

        return await asyncio.to_thread(read)

    async def outcomes(
        self, *, kind: ScoreKind | None = None, before: int | None = None, limit: int = 200
    ) -> Sequence[ScoredOutcome]:
        """Return scores and audits, newest first."""

        def read() -> list[ScoredOutcome]:
            with self._database.read() as connection:
                return outcomes.find_outcomes(connection, kind, before, limit)

        return await asyncio.to_thread(read)

    async def keys(self) -> Sequence[KeyView]:
        """Return all keys by name, revoked ones among them."""
        return await asyncio.to_thread(view_keys, self._database)

    async def add_key(self, terms: KeyTerms) -> str:
        """Make a key and return it: it is shown this once and kept nowhere."""

        def write() -> str:
            with self._database.write() as connection:
                return keys.add_key(connection, terms)

        return await asyncio.to_thread(write)

    async def change_key(self, terms: KeyTerms) -> None:
        """Give a known key other terms."""

        def write() -> None:
            with self._database.write() as connection:
                keys.change_key(connection, terms)

        await asyncio.to_thread(write)

    async def revoke_key(self, name: str) -> None:
        """End a key; requests under way go on."""

        def write() -> None:
            with self._database.write() as connection:
                keys.revoke_key(connection, name)

        await asyncio.to_thread(write)

    def health(self) -> RecordsHealth:
        """Return how keeping goes; touches no disk."""
        return self._records.health()


def view_keys(database: Database) -> list[KeyView]:
    """Return all keys by name with what they spent in their present periods."""
    now = time.time()
    with database.read() as connection:
        rows = keys.list_keys(connection)
        asked = [(row.name, period_of(row.budget_period, now)) for row in rows]
        spent = usage.find_spent(connection, asked)
    return [
        _view_key(row, spent.get(pair, (0.0, 0)), now)
        for row, pair in zip(rows, asked, strict=True)
    ]


def _view_key(row: Row[Any], spent: Spending, now: float) -> KeyView:
    is_expired = row.expires_at is not None and row.expires_at <= now
    return KeyView(
        terms=keys.read_terms(row),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        is_usable=row.revoked_at is None and not is_expired,
        spent_usd=spent[0],
        spent_tokens=spent[1],
        resets_at=end_of(row.budget_period, now),
    )
