"""From whatever version a database has to this program's, in order, once, whoever comes first.

What a version adds follows from the schema; what it changes in rows stands in STEPS. Knows no
rows of its own. Next: database.py.
"""

import logging
import secrets
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from sqlalchemy import Column, Connection, Table, inspect, select, text
from sqlalchemy.schema import CreateColumn

from moestro.errors import StorageError
from moestro.records.schema import METADATA, SCHEMA, STAMPS, VERSION

log = logging.getLogger(__name__)

# Any number that no other program is likely to lock.
_POSTGRESQL_LOCK = 0x6D6F6573

# What a version does to rows that are there already, after its tables and columns were added.
STEPS: MappingProxyType[int, Callable[[Connection], None]] = MappingProxyType({})


def migrate(connection: Connection, version: int = VERSION) -> None:
    """Bring the schema to `version` within the connection's transaction.

    The transaction must be one that writes: whoever comes second waits and finds nothing to do.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _POSTGRESQL_LOCK})
    SCHEMA.create(connection, checkfirst=True)
    found = connection.execute(select(SCHEMA.c.version)).scalar_one_or_none()
    if found is not None and found > version:
        raise StorageError(
            f"the database's schema has version {found}, this program knows up to {version}:"
            " update Moestro, or use another database"
        )
    for step in range((found or 0) + 1, version + 1):
        _advance(connection, step)
    _check(connection, version)
    if found is None:
        connection.execute(SCHEMA.insert().values(version=version))
    elif found < version:
        connection.execute(SCHEMA.update().values(version=version))
        log.info("the database's schema went from version %d to %d", found, version)


def _advance(connection: Connection, version: int) -> None:
    for table in METADATA.sorted_tables:
        if table is not SCHEMA:
            _advance_table(connection, table, version)
    if version == 1:
        # By its identity a new database is told from an old one whose file it took.
        values = {"keys": 0, "outcomes": 0, "identity": secrets.randbits(62)}
        stamps = [{"name": name, "value": value} for name, value in values.items()]
        connection.execute(STAMPS.insert(), stamps)
    STEPS.get(version, _change_no_rows)(connection)


def _advance_table(connection: Connection, table: Table, version: int) -> None:
    if min(_since(column) for column in table.columns) == version:
        if inspect(connection).has_table(table.name):
            raise _strange(f"has the table {table.name}, which came with version {version}")
        # With all its columns: those that a later version would add are then there already.
        table.create(connection)
        return
    added = [column for column in table.columns if _since(column) == version]
    if not added:
        return
    present = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in added:
        if column.name not in present:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))


def _check(connection: Connection, version: int) -> None:
    """Raise StorageError where something is missing that this version has, before it is missed."""
    present = inspect(connection).get_multi_columns(filter_names=list(METADATA.tables))
    names = {table: {column["name"] for column in each} for (_, table), each in present.items()}
    for table in METADATA.sorted_tables:
        known = [column for column in table.columns if column.info.get("since", 1) <= version]
        for column in known:
            if column.name not in names.get(table.name, ()):
                raise _strange(f"has version {version}, but lacks {table.name}.{column.name}")
    stamps = set(connection.execute(select(STAMPS.c.name)).scalars())
    for stamp in ("keys", "outcomes", "identity"):
        if stamp not in stamps:
            raise _strange(f"has version {version}, but lacks the stamp {stamp}")


def _strange(what: str) -> StorageError:
    return StorageError(
        f"the database's schema {what}: it was made by an unreleased Moestro or changed by hand."
        " Move it away, or name another one in records.url"
    )


def _since(column: "Column[Any]") -> int:
    since: int = column.info["since"]
    return since


def _change_no_rows(connection: Connection) -> None:
    """Most versions add and change nothing."""
