"""Usage by key, model and day, and what each key spent: added up while records are written.

Knows no budgets. Next: meters.py.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Insert, Table, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from moestro.api.record import Record
from moestro.api.record_view import TrafficRow, UsageRow
from moestro.records.periods import day_of, periods_of
from moestro.records.schema import SPENT, USAGE

Spending = tuple[float, int]

# A statement takes a limited number of values.
_MOST_PAIRS = 500


def add_usage(connection: Connection, records: Sequence[Record]) -> None:
    """Add records to what was used and spent."""
    usage: dict[tuple[str, ...], dict[str, Any]] = {}
    spent: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        caller = record.caller or ""
        _add(usage, (day_of(record.began_at), caller, record.model), _count(record))
        for period in periods_of(record.began_at) if caller else ():
            _add(spent, (caller, period), _spending(record))
    _upsert(connection, USAGE, ("day", "caller", "model"), usage)
    _upsert(connection, SPENT, ("caller", "period"), spent)


def find_spent(
    connection: Connection, asked: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Spending]:
    """Return what callers spent in periods, by (caller, period); what is missing spent nothing."""
    pairs = list(asked)
    found: dict[tuple[str, str], Spending] = {}
    for start in range(0, len(pairs), _MOST_PAIRS):
        chosen = tuple_(SPENT.c.caller, SPENT.c.period).in_(pairs[start : start + _MOST_PAIRS])
        for row in connection.execute(select(SPENT).where(chosen)):
            found[row.caller, row.period] = (row.cost_usd, row.num_tokens)
    return found


def find_usage(
    connection: Connection, since: str | None, until: str | None, caller: str | None
) -> list[UsageRow]:
    """Return rows of days in a span, newest day first."""
    statement = select(USAGE).order_by(USAGE.c.day.desc(), USAGE.c.caller, USAGE.c.model)
    if since is not None:
        statement = statement.where(USAGE.c.day >= since)
    if until is not None:
        statement = statement.where(USAGE.c.day <= until)
    if caller is not None:
        statement = statement.where(USAGE.c.caller == caller)
    return [UsageRow(**row) for row in connection.execute(statement).mappings()]


def find_traffic(connection: Connection, since: str | None) -> list[TrafficRow]:
    """Return each model's share of what was answered, the greatest first."""
    num_requests = func.sum(USAGE.c.num_requests).label("num_requests")
    cost_usd = func.sum(USAGE.c.cost_usd).label("cost_usd")
    statement = select(USAGE.c.model, num_requests, cost_usd).where(USAGE.c.model != "")
    if since is not None:
        statement = statement.where(USAGE.c.day >= since)
    rows = connection.execute(statement.group_by(USAGE.c.model)).all()
    total = sum(int(row.num_requests) for row in rows)
    traffic = [
        TrafficRow(
            model=row.model,
            num_requests=int(row.num_requests),
            share=int(row.num_requests) / total if total else 0.0,
            cost_usd=float(row.cost_usd),
        )
        for row in rows
    ]
    return sorted(traffic, key=lambda row: (-row.num_requests, row.model))


def _count(record: Record) -> dict[str, Any]:
    # What audits cost is no request's, and takes away from what is saved.
    strongest = 0.0 if record.is_audit else record.strongest_cost_usd
    return {
        "num_requests": int(not record.is_audit),
        "num_failed": int(record.outcome == "failed" and not record.is_audit),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "wasted_tokens": record.wasted_tokens,
        "cost_usd": record.cost_usd,
        "compared_cost_usd": 0.0 if strongest is None else record.cost_usd,
        "strongest_cost_usd": strongest or 0.0,
    }


def _spending(record: Record) -> dict[str, Any]:
    return {
        "cost_usd": record.cost_usd,
        "num_tokens": record.prompt_tokens + record.completion_tokens,
    }


def _add(
    sums: dict[tuple[str, ...], dict[str, Any]], key: tuple[str, ...], counts: dict[str, Any]
) -> None:
    known = sums.setdefault(key, dict.fromkeys(counts, 0))
    for name, count in counts.items():
        known[name] += count


def _upsert(
    connection: Connection,
    table: Table,
    names: tuple[str, ...],
    sums: dict[tuple[str, ...], dict[str, Any]],
) -> None:
    if not sums:
        return
    # Always in one order: two workers that each hold a row the other one wants would wait forever.
    rows = [dict(zip(names, key, strict=True)) | counts for key, counts in sorted(sums.items())]
    connection.execute(_upsert_statement(table, names, connection.dialect.name), rows)


@lru_cache
def _upsert_statement(table: Table, names: tuple[str, ...], dialect: str) -> Insert:
    # Building one takes a millisecond, in which a worker answers nobody.
    kind = postgresql if dialect == "postgresql" else sqlite
    statement = kind.insert(table)
    counts = [column.name for column in table.c if column.name not in names]
    added = {name: table.c[name] + statement.excluded[name] for name in counts}
    upsert: Insert = statement.on_conflict_do_update(index_elements=names, set_=added)
    return upsert
