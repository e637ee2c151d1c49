"""The tables, each column with the version of the schema that it came with.

One definition for SQLite and PostgreSQL. Knows no statements. Next: migrations.py.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

VERSION = 2

# SQLite numbers rows by itself only where the type is exactly INTEGER.
_Number = BigInteger().with_variant(Integer, "sqlite")

METADATA = MetaData()


def _column(name: str, kind: Any, *, since: int = 1, **options: Any) -> "Column[Any]":  # noqa: ANN401
    # A column that is neither a key nor nullable has a default, so that one can be added later.
    return Column(name, kind, info={"since": since}, **options)


def _number(name: str, kind: Any = BigInteger, since: int = 1) -> "Column[Any]":  # noqa: ANN401
    return _column(name, kind, since=since, nullable=False, server_default="0")


SCHEMA = Table("moestro_schema", METADATA, Column("version", Integer, nullable=False))

# Counters that only grow: "keys" whenever any key changed, "outcomes" for their numbers; and the
# database's "identity", which never changes.
STAMPS = Table(
    "moestro_stamps",
    METADATA,
    _column("name", Text, primary_key=True),
    _number("value"),
)

KEYS = Table(
    "moestro_keys",
    METADATA,
    _column("name", Text, primary_key=True),
    _column("digest", Text, nullable=False, unique=True),
    _column("created_at", Double, nullable=False),
    _column("revoked_at", Double),
    _column("expires_at", Double),
    _column("budget_usd", Double),
    _column("budget_tokens", BigInteger),
    _column("budget_period", Text, nullable=False),
    _column("requests_per_minute", Integer),
    _column("tokens_per_minute", Integer),
    _column("concurrent_requests", Integer),
    _column("allowed_models", Text),
    _column("is_admin", Boolean, nullable=False),
)

# What each key spent in a day ("2026-11-26"), a month ("2026-11") and in all ("total").
SPENT = Table(
    "moestro_spent",
    METADATA,
    _column("caller", Text, primary_key=True),
    _column("period", Text, primary_key=True),
    _number("cost_usd", Double),
    _number("num_tokens"),
)

USAGE = Table(
    "moestro_usage",
    METADATA,
    _column("day", Text, primary_key=True),
    _column("caller", Text, primary_key=True),
    _column("model", Text, primary_key=True),
    _number("num_requests"),
    _number("num_failed"),
    _number("prompt_tokens"),
    _number("cached_tokens"),
    _number("completion_tokens"),
    _number("wasted_tokens"),
    _number("cost_usd", Double),
    _number("compared_cost_usd", Double),
    _number("strongest_cost_usd", Double),
)

DECISIONS = Table(
    "moestro_decisions",
    METADATA,
    _column("id", _Number, primary_key=True, autoincrement=True),
    _column("request_id", Text, nullable=False),
    _column("began_at", Double, nullable=False),
    _column("path", Text, nullable=False),
    _column("caller", Text),
    _column("asked", Text, nullable=False),
    _column("model", Text, nullable=False),
    _column("backend", Text, nullable=False),
    _column("reason", Text, nullable=False),
    _column("outcome", Text, nullable=False),
    _column("status", Integer, nullable=False),
    _column("is_streamed", Boolean, nullable=False),
    _column("digest", Text),
    _column("scores", Text),
    _column("threshold", Double),
    _column("conversation", Text),
    _number("input_usd_per_mtok", Double),
    _number("output_usd_per_mtok", Double),
    _number("prompt_tokens"),
    _number("cached_tokens"),
    _number("completion_tokens"),
    _number("wasted_tokens"),
    _column("is_estimated", Boolean, nullable=False),
    _number("cost_usd", Double),
    _column("strongest_cost_usd", Double),
    _column("first_s", Double),
    _number("whole_s", Double),
    _number("num_attempts", Integer),
    _number("num_failovers", Integer),
    _column("error", Text),
    _column("prompt", Text),
    _column("answer", Text),
    Index("moestro_decisions_request", "request_id"),
    Index("moestro_decisions_time", "began_at"),
    Index("moestro_decisions_caller", "caller", "id"),
    Index("moestro_decisions_model", "model", "id"),
    sqlite_autoincrement=True,
)

# Which batch of its own each writer wrote last, so that one in doubt is not written twice.
WRITERS = Table(
    "moestro_writers",
    METADATA,
    _column("name", Text, primary_key=True),
    _number("batch"),
    _column("at", Double, nullable=False),
)

OUTCOMES = Table(
    "moestro_outcomes",
    METADATA,
    _column("id", BigInteger, primary_key=True, autoincrement=False),
    _column("at", Double, nullable=False),
    _column("kind", Text, nullable=False),
    _column("request_id", Text, nullable=False),
    _column("caller", Text),
    _column("model", Text),
    _column("score", Double, nullable=False),
    _column("strongest_score", Double),
    _column("note", Text),
    Index("moestro_outcomes_request", "request_id"),
)

STATES = Table(
    "moestro_states",
    METADATA,
    _column("name", Text, primary_key=True),
    _number("version"),
    _column("value", Text, nullable=False),
    _column("at", Double, nullable=False),
)

ANSWERS = Table(
    "moestro_answers",
    METADATA,
    _column("digest", Text, since=2, primary_key=True),
    _column("created_at", Double, since=2, nullable=False),
    _column("used_at", Double, since=2, nullable=False),
    _number("num_hits", since=2),
    _column("size", BigInteger, since=2, nullable=False),
    _column("headers", Text, since=2, nullable=False),
    _column("body", LargeBinary, since=2, nullable=False),
    _column("usage", Text, since=2),
    Index("moestro_answers_used", "used_at"),
)
