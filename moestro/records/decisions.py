"""Records as rows, and rows as decisions: newest first, page by page.

Knows no queue. Next: writer.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, select

from moestro.api.record import Record
from moestro.api.record_view import DecisionFilter, DecisionPage, RecordedDecision
from moestro.records.schema import DECISIONS

_MOST = 1000
# SQLite takes 32,766 values at once, PostgreSQL twice as many.
_MOST_ROWS = 512
_FIELDS = tuple(field.name for field in fields(Record))
_PLAIN = tuple(name for name in _FIELDS if name != "scores")
_VALUES = attrgetter(*_PLAIN)
_WRITTEN = (*_PLAIN, "scores", "prompt", "answer")
_LISTED = [column for column in DECISIONS.c if column.name not in ("prompt", "answer")]
_EQUAL = ("caller", "asked", "model", "backend", "outcome", "request_id", "conversation")


@dataclass(frozen=True, slots=True)
class Entry:
    """A record on its way into the ledger, with its texts where they are kept."""

    record: Record
    prompt: str | None = None
    answer: str | None = None

    def values(self) -> tuple[Any, ...]:
        """Return it as a row."""
        scores = json.dumps(dict(self.record.scores)) if self.record.scores else None
        return (*_VALUES(self.record), scores, self.prompt, self.answer)


def insert_entries(connection: Connection, entries: Sequence[Entry]) -> None:
    """Add rows in order."""
    # Few statements with many rows, which take half the time; few sizes, as a database keeps each.
    start = 0
    while start < len(entries):
        size = 1 << min(len(entries) - start, _MOST_ROWS).bit_length() - 1
        values = chain.from_iterable(entry.values() for entry in entries[start : start + size])
        statement = _insert_statement(connection.dialect.name, size)
        connection.exec_driver_sql(statement, tuple(values))
        start += size


def find_decisions(
    connection: Connection, chosen: DecisionFilter, before: int | None, limit: int
) -> DecisionPage:
    """Return those that match, newest first, with a lower number than `before`."""
    limit = max(1, min(limit, _MOST))
    conditions: list[ColumnElement[bool]] = [
        DECISIONS.c[name] == getattr(chosen, name)
        for name in _EQUAL
        if getattr(chosen, name) is not None
    ]
    if chosen.since is not None:
        conditions.append(DECISIONS.c.began_at >= chosen.since)
    if chosen.until is not None:
        conditions.append(DECISIONS.c.began_at < chosen.until)
    if before is not None:
        conditions.append(DECISIONS.c.id < before)
    statement = select(*_LISTED).where(*conditions).order_by(DECISIONS.c.id.desc())
    rows = connection.execute(statement.limit(limit + 1)).all()
    decisions = tuple(_to_decision(row) for row in rows[:limit])
    return DecisionPage(decisions=decisions, before=decisions[-1].id if len(rows) > limit else None)


def find_decision(connection: Connection, number: int) -> RecordedDecision | None:
    """Return one, with its texts."""
    row = connection.execute(select(DECISIONS).where(DECISIONS.c.id == number)).one_or_none()
    if row is None:
        return None
    found = _to_decision(row)
    return RecordedDecision(id=found.id, record=found.record, prompt=row.prompt, answer=row.answer)


def delete_older(connection: Connection, before: float, limit: int) -> int:
    """Delete at most `limit` of the oldest that began before a moment; return how many."""
    oldest = (
        select(DECISIONS.c.id)
        .where(DECISIONS.c.began_at < before)
        .order_by(DECISIONS.c.began_at)
        .limit(limit)
    )
    done = connection.execute(delete(DECISIONS).where(DECISIONS.c.id.in_(oldest)))
    return done.rowcount


@lru_cache
def _insert_statement(dialect: str, num_rows: int) -> str:
    mark = "?" if dialect == "sqlite" else "%s"
    row = f"({', '.join([mark] * len(_WRITTEN))})"
    rows = ", ".join([row] * num_rows)
    return f"INSERT INTO {DECISIONS.name} ({', '.join(_WRITTEN)}) VALUES {rows}"


def _to_decision(row: Row[Any]) -> RecordedDecision:
    values = {name: getattr(row, name) for name in _FIELDS}
    values["scores"] = json.loads(row.scores) if row.scores else {}
    return RecordedDecision(id=row.id, record=Record(**values))
