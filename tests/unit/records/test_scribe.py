"""The process that writes for workers: nothing is lost or written twice, whoever dies or goes."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from moestro.cli.keeper import Keeper
from moestro.cli.scribe import main
from moestro.errors import StorageError
from moestro.records.config import RecordsConfig
from moestro.records.counts import LedgerCounts
from moestro.records.database import Database
from moestro.records.decisions import Entry
from moestro.records.records import Records
from moestro.records.scribe import RemoteWriter, listen_for_workers
from moestro.records.shared import SharedFile, create_shared
from moestro.records.writer import BadRowError, LedgerBatch, encode_entry
from tests.unit.records.made import make_record

Start = Callable[..., Records]
Wait = Callable[..., None]
PATIENCE_S = 60.0


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def scribe(url: str, address: Path) -> Iterator[Keeper]:
    with listen_for_workers(address) as listener:
        keeper = Keeper("scribe", main, (listener, RecordsConfig(url=url)))
        keeper.start()
        yield keeper
        keeper.end()


def requests_in(database: Database) -> list[str]:
    with database.read() as connection:
        statement = "SELECT request_id FROM moestro_decisions ORDER BY id"
        return [str(row[0]) for row in connection.exec_driver_sql(statement)]


def encode(*numbers: int) -> list[bytes]:
    return [encode_entry(Entry(make_record(number))) for number in numbers]


def has_ended(scribe: Keeper, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while scribe.is_alive and time.monotonic() < end:
        time.sleep(0.01)
    return not scribe.is_alive


def test_several_workers_records_are_all_written_by_the_time_they_stop(
    start: Start, scribe: Keeper, address: Path, database: Database, tmp_path: Path
) -> None:
    shared = create_shared(2)
    workers = [
        start(shared=shared, worker=worker, writer=RemoteWriter(address)) for worker in (0, 1)
    ]
    for number in range(300):
        workers[number % 2].finish(make_record(number))
    for worker in workers:
        worker.stop(PATIENCE_S)
        assert (worker.health().written_records, worker.health().lost_records) == (150, 0)
    shared.unlink()
    assert sorted(requests_in(database)) == sorted(f"request-{number}" for number in range(300))


def test_a_writer_that_is_killed_again_and_again_loses_nothing_and_writes_nothing_twice(
    start: Start, scribe: Keeper, address: Path, database: Database, wait_until: Wait
) -> None:
    records = start(writer=RemoteWriter(address))
    for number in range(4000):
        records.finish(make_record(number))
        if number % 1000 == 500:
            wait_until(lambda: scribe.is_alive)
            assert scribe.pid is not None
            os.kill(scribe.pid, signal.SIGKILL)
            wait_until(lambda: scribe.look() is not None)
            wait_until(lambda: scribe.look() is None and scribe.is_alive)
    wait_until(lambda: records.health().written_records == 4000)
    assert (records.health().lost_records, scribe.restarts) == (0, 4)
    assert requests_in(database) == [f"request-{number}" for number in range(4000)]


def test_while_it_is_stopped_records_wait_and_nobody_else_does(
    start: Start, scribe: Keeper, address: Path, wait_until: Wait
) -> None:
    records = start(writer=RemoteWriter(address), settings={"max_waiting_records": 50})
    assert scribe.pid is not None
    os.kill(scribe.pid, signal.SIGSTOP)
    began = time.perf_counter()
    for number in range(70):
        records.finish(make_record(number))
    assert time.perf_counter() - began < 1
    assert records.health().lost_records == 20
    os.kill(scribe.pid, signal.SIGCONT)
    wait_until(lambda: records.health().written_records == 50)


def test_it_ends_when_told_but_not_before_its_workers(
    scribe: Keeper, address: Path, database: Database
) -> None:
    worker = RemoteWriter(address)
    worker.write(LedgerBatch("one", 1, encode(1)))
    scribe.ask_to_end()
    assert not has_ended(scribe, 0.5)
    worker.write(LedgerBatch("one", 2, encode(2)))
    worker.close()
    assert has_ended(scribe, PATIENCE_S)
    assert scribe.look() == 0
    assert requests_in(database) == ["request-1", "request-2"]


def test_it_ends_when_its_supervisor_is_gone(scribe: Keeper, address: Path) -> None:
    RemoteWriter(address).close()
    assert scribe._pipe is not None
    scribe._pipe.close()
    assert has_ended(scribe, PATIENCE_S)


def test_a_worker_killed_in_the_middle_of_a_batch_leaves_others_alone(
    scribe: Keeper, address: Path, database: Database
) -> None:
    dying, other = RemoteWriter(address), RemoteWriter(address)
    assert dying._line is not None
    # Of a batch of 1000 bytes, ten come.
    os.write(dying._line.fileno(), (1000).to_bytes(4, "big") + b"0123456789")
    dying.close()
    other.write(LedgerBatch("two", 1, encode(1)))
    assert requests_in(database) == ["request-1"]


def test_what_a_database_refuses_comes_back_as_it_was(
    tmp_path: Path, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.db"
    path.mkdir()
    with listen_for_workers(address) as listener:
        config = RecordsConfig(url=f"sqlite:///{path}")
        keeper = Keeper("scribe", main, (listener, config))
        keeper.start()
        worker = RemoteWriter(address)
        try:
            with pytest.raises(StorageError, match="unable to open database file"):
                worker.write(LedgerBatch("one", 1, encode(1)))
            path.rmdir()
            bad = encode_entry(Entry(make_record(1, prompt_tokens=2**63)))
            with pytest.raises(BadRowError):
                worker.write(LedgerBatch("one", 1, [*encode(0), bad]))
            worker.write(LedgerBatch("one", 1, encode(0)))
        finally:
            keeper.end()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM moestro_decisions").fetchone() == (1,)


def test_records_that_have_stopped_hold_nobody_up(
    start: Start, scribe: Keeper, address: Path
) -> None:
    worker = start(writer=RemoteWriter(address))
    worker.finish(make_record(0))
    worker.stop(PATIENCE_S)
    scribe.ask_to_end()
    assert has_ended(scribe, PATIENCE_S)


def test_a_writer_that_is_gone_is_trouble_and_no_more(address: Path) -> None:
    with listen_for_workers(address):
        worker = RemoteWriter(address)
    with pytest.raises(StorageError, match="the process that writes records"):
        worker.write(LedgerBatch("one", 1, encode(1)))
    with pytest.raises(StorageError, match="the process that writes records"):
        RemoteWriter(address)


def test_an_address_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="TMPDIR"):
        listen_for_workers(tmp_path / ("long" * 40))


def test_restarts_are_counted_for_every_worker() -> None:
    path = create_shared(2)
    LedgerCounts(SharedFile(path, 0)).note_restart()
    assert LedgerCounts(SharedFile(path, 1)).num_restarts == 1
    path.unlink()
