"""Old schemas come up with all their rows, new ones are refused, several workers do it once."""

import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Double, MetaData, Table, Text, create_engine, inspect, text
from sqlalchemy.exc import StatementError

from moestro.api.record_view import DecisionFilter
from moestro.errors import ConfigError, StorageError
from moestro.records import decisions, keys, migrations, outcomes, usage
from moestro.records.config import CacheConfig, RecordsConfig
from moestro.records.database import Database
from moestro.records.schema import METADATA, SCHEMA, VERSION

SPAWN = multiprocessing.get_context("spawn")


def make_old(path: Path) -> Database:
    connection = sqlite3.connect(path)
    connection.executescript(Path(__file__).with_name("version1.sql").read_text())
    connection.close()
    return Database(RecordsConfig(url=f"sqlite:///{path}"))


def test_a_database_of_version_1_keeps_all_its_rows(tmp_path: Path) -> None:
    with closing(make_old(tmp_path / "old.db")) as database:
        database.open()
        with database.read() as connection:
            assert connection.execute(SCHEMA.select()).scalar_one() == VERSION
            terms = keys.find_terms(connection, "alice")
            assert (terms.budget_usd, terms.allowed_models) == (5.0, ("small",))
            page = decisions.find_decisions(connection, DecisionFilter(), None, 10)
            assert page.decisions[0].record.scores == {"small": 0.5}
            assert usage.find_spent(connection, [("alice", "2026-11")]) == {
                ("alice", "2026-11"): (1.5, 300)
            }
            assert outcomes.outcomes_since(connection, 0)[0].score == 0.5
            assert outcomes.load_state(connection, "floor") == ({"seen": 1}, 3)


def test_an_old_database_ends_with_the_tables_of_a_new_one(tmp_path: Path) -> None:
    with closing(make_old(tmp_path / "old.db")) as old:
        old.open()
    with closing(Database(RecordsConfig(url=f"sqlite:///{tmp_path}/new.db"))) as new:
        new.open()
    assert columns_of(tmp_path / "old.db") == columns_of(tmp_path / "new.db")
    assert set(columns_of(tmp_path / "new.db")) >= set(METADATA.tables)


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    with database.write() as connection:
        connection.execute(SCHEMA.update().values(version=VERSION + 1))
    database.close()
    with pytest.raises(StorageError, match=f"version {VERSION + 1}.*update Moestro"):
        database.open()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("DELETE FROM moestro_stamps WHERE name = 'identity'", "lacks the stamp identity"),
        ("DELETE FROM moestro_stamps", "lacks the stamp keys"),
        ("ALTER TABLE moestro_decisions DROP COLUMN digest", "lacks moestro_decisions.digest"),
        ("DROP TABLE moestro_states", "lacks moestro_states.name"),
        ("DELETE FROM moestro_schema", "has the table moestro_"),
        ("DROP TABLE moestro_schema", "has the table moestro_"),
        ("UPDATE moestro_schema SET version = 1", "has the table moestro_answers, which came with"),
    ],
)
def test_a_database_that_is_not_what_it_says_is_one_line_with_the_next_step(
    database: Database, change: str, what: str
) -> None:
    with database.write() as connection:
        connection.execute(text(change))
    database.close()
    with pytest.raises(StorageError, match=rf"^the database's schema .*{what}.*Move it away"):
        database.open()


def test_a_column_that_a_later_version_adds_is_added(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = MetaData()
    Table(
        "moestro_states",
        later,
        Column("name", Text, primary_key=True, info={"since": 1}),
        Column("note", Text, info={"since": VERSION + 1}),
        Column("weight", Double, info={"since": VERSION + 1}, server_default="2", nullable=False),
    )
    with database.write() as connection:
        outcomes.save_state(connection, "floor", {}, 0)
    changed = []
    monkeypatch.setattr(migrations, "METADATA", later)
    monkeypatch.setattr(migrations, "STEPS", {VERSION + 1: changed.append})
    for _ in range(2):
        with database.write() as connection:
            migrations.migrate(connection, VERSION + 1)
    assert len(changed) == 1
    with database.write() as connection:
        assert connection.execute(text("SELECT weight FROM moestro_states")).scalar_one() == 2
        # As in a new database, which has all columns from the start.
        connection.execute(SCHEMA.update().values(version=VERSION))
        migrations.migrate(connection, VERSION + 1)


def open_together(url: str, together: Any, results: Any) -> None:
    together.wait()
    with closing(Database(RecordsConfig(url=url))) as database:
        database.open()
        with database.read() as connection:
            results.put(connection.execute(SCHEMA.select()).all() == [(VERSION,)])


def test_workers_that_start_at_once_migrate_once(url: str) -> None:
    results, together = SPAWN.Queue(), SPAWN.Barrier(4)
    workers = [SPAWN.Process(target=open_together, args=(url, together, results)) for _ in range(4)]
    for process in workers:
        process.start()
    assert [results.get(timeout=120) for _ in workers] == [True] * 4
    for process in workers:
        process.join()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "no database URL"),
        ("mysql://host/name", "only sqlite and postgresql"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("postgresql+nodriver://host/name", "needs a driver"),
    ],
)
def test_a_url_that_cannot_work_is_refused_in_one_line(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), closing(Database(RecordsConfig(url=url))) as it:
        it.open()


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESTRO_TEST_PASSWORD", "secret1")
    url = "postgresql://user@127.0.0.1:1/name"
    database = Database(RecordsConfig(url=url, password="env:MOESTRO_TEST_PASSWORD"))
    with pytest.raises(StorageError) as caught:
        database.open()
    assert "secret1" not in str(caught.value)
    assert "secret1" not in database.name
    assert database.name.startswith("postgresql+psycopg://")
    with pytest.raises(ConfigError, match='write "env:NAME"') as refused:
        Database(RecordsConfig(url=url, password="secret1"))
    assert "secret1" not in str(refused.value)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(StorageError, match="not a database"):
        Database(RecordsConfig(url=f"sqlite:///{path}")).open()
    with pytest.raises(StorageError, match="unable to open"):
        Database(RecordsConfig(url=f"sqlite:///{tmp_path}/none/records.db")).open()


def test_a_log_that_cannot_be_kept_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE theirs (id INTEGER)")
    other.execute("BEGIN")
    other.execute("SELECT * FROM theirs").fetchall()
    monkeypatch.setattr("moestro.records.database._BUSY_S", 0.0)
    monkeypatch.setattr("moestro.records.database._WAL_TRIES", 2)
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    with closing(Database(RecordsConfig(url=f"sqlite:///{path}"))) as database:
        with pytest.raises(StorageError, match="write-ahead log: database is locked"):
            database.open()
        assert len(waits) == 1
        other.close()
        database.open()


def test_what_fails_outside_of_the_database_is_told_as_well(database: Database) -> None:
    with pytest.raises(StatementError), database.read() as connection:
        connection.execute(text("SELECT :missing"), {})
    with pytest.raises(StorageError, match="InvalidRequestError"), database.read() as connection:
        connection.begin()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (RecordsConfig, {"retention_days": 0}),
        (RecordsConfig, {"max_waiting_records": 0}),
        (RecordsConfig, {"assumed_answer_tokens": 0}),
        (RecordsConfig, {"flush_s": 0.0}),
        (RecordsConfig, {"poll_s": float("nan")}),
        (CacheConfig, {"max_age_s": 0.0}),
        (CacheConfig, {"max_bytes": -1}),
        (CacheConfig, {"max_answer_bytes": 0}),
    ],
)
def test_impossible_settings_are_refused(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        kind(**settings)


def columns_of(path: Path) -> dict[str, Any]:
    engine = create_engine(f"sqlite:///{path}")
    found = inspect(engine)
    tables = {
        table: (
            [(column["name"], str(column["type"]), column["nullable"], column["default"])
             for column in found.get_columns(table)],
            sorted(str(index["name"]) for index in found.get_indexes(table)),
            found.get_pk_constraint(table)["constrained_columns"],
        )
        for table in found.get_table_names()
    }  # fmt: skip
    engine.dispose()
    return tables
