"""One database, SQLite's or PostgreSQL's: transactions that read, and those that write.

Whatever the database refuses becomes StorageError, without the password. It survives that its file
is deleted: an empty one takes its place. Knows no tables. Next: schema.py, migrations.py.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
    StatementError,
)

from moestro import settings
from moestro.errors import ConfigError, StorageError
from moestro.records.config import RecordsConfig
from moestro.records.migrations import migrate

log = logging.getLogger(__name__)

_BUSY_S = 5.0
_WAL_TRIES = 100
_WAL_WAIT_S = 0.1
_POSTGRESQL_OPTIONS = "-c statement_timeout=15000 -c lock_timeout=5000"


class Database:
    """Opens on first use; every transaction runs in the thread that began it."""

    def __init__(self, config: RecordsConfig) -> None:
        self._url = _read_url(config)
        self.name = self._url.render_as_string(hide_password=True)
        self._engine: Engine | None = None
        self._file: tuple[int, int] | None = None
        self._opening = threading.Lock()

    @property
    def is_sqlite(self) -> bool:
        """Tell which of the two kinds it is."""
        return self._url.get_backend_name() == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of the database."""
        with self._errors(), self._open().begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection whose changes appear together, or not at all if the block raises."""
        with self._errors(), self._open().execution_options(is_writing=True).begin() as connection:
            yield connection

    def open(self) -> None:
        """Connect and bring the schema up to date, or say why not."""
        with self._errors():
            self._open()

    def close(self) -> None:
        """Give up all connections; the next use opens new ones."""
        with self._opening:
            self._dispose()

    def _open(self) -> Engine:
        with self._opening:
            if self._engine is not None and self._file != _identify(self._url):
                log.error("%s: the file was replaced or deleted: opened anew", self.name)
                self._dispose()
            if self._engine is None:
                engine = _build_engine(self._url)
                try:
                    _prepare(engine, self.is_sqlite)
                except BaseException:
                    engine.dispose()
                    raise
                self._engine, self._file = engine, _identify(self._url)
            return self._engine

    def _dispose(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            # Of these two a row is at fault, not the database.
            if isinstance(error, DataError | IntegrityError):
                raise
            reason = str(error.orig).strip().partition("\n")[0]
            raise StorageError(f"database {self.name}: {reason}") from error
        except sqlite3.Error as error:
            # What a new connection is set up with does not go through SQLAlchemy.
            raise StorageError(f"database {self.name}: {error}") from error
        except StatementError:
            raise
        except SQLAlchemyError as error:
            raise StorageError(f"database {self.name}: {type(error).__name__}: {error}") from error


def _read_url(config: RecordsConfig) -> URL:
    try:
        url = make_url(config.url)
    except ArgumentError as error:
        # Not shown: what cannot be read may hold a password all the same.
        raise ConfigError(
            "records.url is no database URL: write sqlite:///FILE or postgresql+psycopg://HOST/NAME"
        ) from error
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(f"records.url is for {backend}: only sqlite and postgresql are known")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError(
            "records.url names no file, and workers cannot share memory: write sqlite:///FILE"
        )
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if config.password is not None:
        kind, _, variable = config.password.partition(":")
        if kind != "env" or not variable:
            raise ConfigError('records.password is no name of a variable: write "env:NAME"')
        url = url.set(password=settings.secret(variable))
    return url


def _build_engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "sqlite":
            engine = create_engine(url, connect_args={"timeout": _BUSY_S})
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        arguments = {"connect_timeout": 5, "options": _POSTGRESQL_OPTIONS}
        return create_engine(url, connect_args=arguments, pool_pre_ping=True)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            f"records.url needs a driver that is not here ({error}): pip install"
            " 'moestro[postgresql]', or write postgresql+psycopg://HOST/NAME"
        ) from error


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    # Transactions begin where we say so, not where the driver guesses.
    connection.isolation_level = None
    # With a write-ahead log this is safe against crashes of the program; a power cut may lose the
    # last moments, but damages nothing.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get("is_writing", False)
    # A transaction that reads first and writes then can fail where one that waits does not.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _prepare(engine: Engine, is_sqlite: bool) -> None:
    if is_sqlite:
        raw: Any = engine.raw_connection()
        try:
            _log_ahead(raw.driver_connection)
        finally:
            raw.close()
    with engine.execution_options(is_writing=True).begin() as connection:
        migrate(connection)


def _log_ahead(connection: sqlite3.Connection) -> None:
    # The change needs the file for itself, and does not wait for it by itself.
    for attempt in range(_WAL_TRIES):
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            is_last = attempt == _WAL_TRIES - 1
            if is_last or "locked" not in str(error):
                raise StorageError(
                    f"the database cannot keep a write-ahead log: {error}"
                ) from error
        time.sleep(_WAL_WAIT_S)


def _identify(url: URL) -> tuple[int, int] | None:
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    try:
        status = os.stat(url.database)
    except OSError:
        return None
    return status.st_dev, status.st_ino
