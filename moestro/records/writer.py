"""Batches of records into the database, each once: what writes them, and how they travel to it.

Whoever answers requests asks a process of its own to write: a thread beside them would hold
Python's lock while they wait. Knows no queue. Next: scribe.py, ledger.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import msgspec
from sqlalchemy import Connection, Insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import StatementError

from moestro.records.database import Database
from moestro.records.decisions import Entry, insert_entries
from moestro.records.schema import WRITERS
from moestro.records.usage import add_usage

# What a row raises that no database takes: a number too long, text that is not Unicode.
BAD_ROW = (StatementError, ValueError, OverflowError, TypeError)

_encode = msgspec.msgpack.Encoder().encode
_read_entry = msgspec.msgpack.Decoder(Entry).decode


class BadRowError(Exception):
    """A batch has a row that no database takes; nothing of it was written."""


@dataclass(frozen=True, slots=True)
class LedgerBatch:
    """Encoded entries in order; `number` is one more than that of the same ledger's batch before.

    One whose writing is in doubt is sent again as it was, with its number.
    """

    ledger: str
    number: int
    entries: Sequence[bytes]


class Writer(Protocol):
    """Writes batches."""

    def write(self, batch: LedgerBatch) -> None:
        """Write a batch unless it is there already.

        BadRowError where a row is at fault, StorageError where the database cannot be written.
        """

    def close(self) -> None:
        """Hold nothing any more."""


class DatabaseWriter:
    """Writes in this thread; the database stays whose it is."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, batch: LedgerBatch) -> None:
        """Write a batch in one transaction, unless it is there already."""
        try:
            entries = [_read_entry(entry) for entry in batch.entries]
            with self._database.write() as connection:
                # If the last commit's answer got lost, the batch is there already.
                if _last_batch(connection, batch.ledger) < batch.number:
                    insert_entries(connection, entries)
                    add_usage(connection, [entry.record for entry in entries])
                    _note_batch(connection, batch)
        except BAD_ROW as error:
            raise BadRowError(type(error).__name__) from error

    def close(self) -> None:
        """Hold nothing any more."""


def encode_entry(entry: Entry) -> bytes:
    """Return an entry as it travels; BadRowError if it has what no database takes."""
    try:
        return _encode(entry)
    except BAD_ROW as error:
        raise BadRowError(type(error).__name__) from error


def _last_batch(connection: Connection, name: str) -> int:
    found = connection.execute(select(WRITERS.c.batch).where(WRITERS.c.name == name))
    return found.scalar_one_or_none() or 0


def _note_batch(connection: Connection, batch: LedgerBatch) -> None:
    values = {"name": batch.ledger, "batch": batch.number, "at": time.time()}
    connection.execute(_note_statement(connection.dialect.name), values)


@lru_cache
def _note_statement(dialect: str) -> Insert:
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(WRITERS)
    changed = {"batch": statement.excluded.batch, "at": statement.excluded.at}
    upsert: Insert = statement.on_conflict_do_update(index_elements=["name"], set_=changed)
    return upsert
