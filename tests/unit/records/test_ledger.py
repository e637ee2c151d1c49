"""The ledger: every record once, in order, whatever the database does meanwhile."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.api.record_view import DecisionFilter
from moestro.errors import StorageError
from moestro.records import usage
from moestro.records.config import RecordsConfig
from moestro.records.counts import LedgerCounts, bury_ledger
from moestro.records.database import Database
from moestro.records.decisions import Entry
from moestro.records.ledger import Ledger
from moestro.records.records import Records
from moestro.records.shared import SharedFile, create_shared
from moestro.records.view import View
from moestro.records.writer import DatabaseWriter, LedgerBatch, encode_entry
from tests.unit.records.cluster import Cluster
from tests.unit.records.made import NOON, make_record

Start = Callable[..., Records]
Wait = Callable[..., None]
ALL = DecisionFilter()


def count_rows(records: Records) -> int:
    page = asyncio.run(View(records).decisions(ALL, limit=1000))
    return len(page.decisions)


def test_a_record_comes_back_as_it_went(start: Start, wait_until: Wait) -> None:
    records = start()
    sent = make_record(error="went wrong", first_s=0.125, conversation="c", is_estimated=True)
    records.finish(sent)
    records.finish(make_record(1, scores={}, caller=None))
    wait_until(lambda: records.health().written_records == 2)
    page = asyncio.run(View(records).decisions(ALL))
    assert page.decisions[1].record == sent
    assert page.decisions[0].record.scores == {}
    assert page.before is None


def test_pages_follow_each_other_without_gap_or_overlap(start: Start, wait_until: Wait) -> None:
    records = start()
    for number in range(25):
        records.finish(make_record(number, caller="bob" if number % 5 == 0 else "alice"))
    wait_until(lambda: records.health().written_records == 25)
    view = View(records)
    seen, before = [], None
    while True:
        chosen = DecisionFilter(caller="alice")
        page = asyncio.run(view.decisions(chosen, before=before, limit=7))
        seen += [decision.record.request_id for decision in page.decisions]
        before = page.before
        if before is None:
            break
    assert seen == [f"request-{number}" for number in range(24, -1, -1) if number % 5]


@pytest.mark.parametrize(
    "chosen",
    [
        DecisionFilter(model="large"),
        DecisionFilter(asked="large"),
        DecisionFilter(backend="large/1"),
        DecisionFilter(outcome="failed"),
        DecisionFilter(request_id="request-1"),
        DecisionFilter(conversation="c"),
        DecisionFilter(since=NOON + 1, until=NOON + 2),
    ],
)
def test_a_filter_finds_what_it_names(
    start: Start, wait_until: Wait, chosen: DecisionFilter
) -> None:
    records = start()
    other = {"model": "large", "asked": "large", "backend": "large/1", "outcome": "failed"}
    records.finish(make_record(0))
    records.finish(make_record(1, conversation="c", **other))
    records.finish(make_record(2))
    wait_until(lambda: records.health().written_records == 3)
    page = asyncio.run(View(records).decisions(chosen))
    assert [decision.record.request_id for decision in page.decisions] == ["request-1"]


def test_texts_are_kept_only_where_they_are_asked_for(start: Start, wait_until: Wait) -> None:
    for keeps in (False, True):
        records = start(settings={"keeps_prompts": keeps})
        records.finish(make_record(), prompt="what?", answer="that")
        wait_until(lambda records=records: records.health().written_records == 1)
        view = View(records)
        listed = asyncio.run(view.decisions(ALL)).decisions[0]
        found = asyncio.run(view.decision(listed.id))
        assert found is not None
        assert (found.prompt, found.answer) == (("what?", "that") if keeps else (None, None))
        assert (listed.prompt, listed.answer) == (None, None)
    assert asyncio.run(view.decision(10**6)) is None


def test_audits_are_no_requests_and_take_away_from_what_is_saved(
    start: Start, wait_until: Wait
) -> None:
    records = start()
    for audit in ({"cost_usd": 0.75}, {"cost_usd": 0.0, "outcome": "failed"}):
        records.finish(make_record(1, model="large", caller=None, reason="audit", **audit))
    wait_until(lambda: records.health().written_records == 2)
    [row] = asyncio.run(View(records).usage())
    assert (row.num_requests, row.num_failed) == (0, 0)
    assert (row.cost_usd, row.compared_cost_usd, row.strongest_cost_usd) == (0.75, 0.75, 0.0)


def test_usage_adds_up_by_key_model_and_day(start: Start, wait_until: Wait) -> None:
    records = start()
    for number in range(150):
        records.finish(make_record(number))
    records.finish(make_record(0, model="large", strongest_cost_usd=None))
    records.finish(make_record(86_400, caller=None, outcome="failed", model=""))
    wait_until(lambda: records.health().written_records == 152)
    view = View(records)
    rows = asyncio.run(view.usage())
    assert [(row.day, row.caller, row.model) for row in rows] == [
        ("2026-11-27", "", ""),
        ("2026-11-26", "alice", "large"),
        ("2026-11-26", "alice", "small"),
    ]
    assert (rows[0].num_requests, rows[0].num_failed) == (1, 1)
    assert (rows[2].num_requests, rows[2].completion_tokens) == (150, 3000)
    assert (rows[2].cost_usd, rows[2].strongest_cost_usd) == (75.0, 300.0)
    assert (rows[1].compared_cost_usd, rows[1].strongest_cost_usd) == (0.0, 0.0)
    some = asyncio.run(view.usage(since="2026-11-26", until="2026-11-26", caller="alice"))
    assert some == rows[1:]
    traffic = asyncio.run(view.traffic(since="2026-11-01"))
    assert [(row.model, row.num_requests) for row in traffic] == [("small", 150), ("large", 1)]
    assert sum(row.share for row in traffic) == pytest.approx(1)
    assert asyncio.run(view.traffic(since="2027-01-01")) == []


def test_what_many_keys_spent_is_found_at_once(database: Database) -> None:
    count = 1200
    with database.write() as connection:
        usage.add_usage(connection, [make_record(0, caller=f"k{n}") for n in range(count)])
        usage.add_usage(connection, [])
        asked = [(f"k{n}", "2026-11-26") for n in range(count)]
        assert usage.find_spent(connection, asked) == dict.fromkeys(asked, (0.5, 30))
        assert usage.find_spent(connection, []) == {}


@pytest.fixture
def shared() -> Iterator[Path]:
    path = create_shared(2)
    yield path
    path.unlink()


def test_what_a_full_queue_cannot_hold_is_counted_and_nobody_waits(url: str, shared: Path) -> None:
    counts = LedgerCounts(SharedFile(shared, 0))
    writer = DatabaseWriter(Database(RecordsConfig(url=url)))
    ledger = Ledger(writer, counts, max_waiting=3, flush_s=1)
    for number in range(10):
        ledger.add(Entry(make_record(number)))
    assert (ledger.num_waiting, ledger.num_lost) == (3, 7)
    # Every worker knows.
    assert LedgerCounts(SharedFile(shared, 1)).num_lost == 7


def test_what_a_killed_worker_had_in_its_queue_is_counted_as_lost_once(
    start: Start, wait_until: Wait, shared: Path
) -> None:
    other = start(shared=shared, worker=1)
    dying = start(shared=shared, worker=0, settings={"flush_s": 0.05})
    for number in range(5):
        dying.finish(make_record(number))
    wait_until(lambda: dying.health().written_records == 5)
    assert bury_ledger(SharedFile(shared, 0)) == 0
    # Its thread is ended, so that nothing more is written, as if it were killed.
    dying.ledger.stop(60)
    for number in range(7):
        dying.finish(make_record(number))
    assert other.health().lost_records == 0
    assert bury_ledger(SharedFile(shared, 0)) == 7
    assert bury_ledger(SharedFile(shared, 0)) == 0
    assert other.health().lost_records == 7
    # The next one in its place goes on from there.
    again = start(shared=shared, worker=0)
    again.finish(make_record())
    wait_until(lambda: again.health().written_records == 1)
    assert bury_ledger(SharedFile(shared, 0)) == 0
    assert again.health().lost_records == 7


@pytest.mark.parametrize("num_tokens", [2**63, 2**80])
def test_one_bad_record_takes_no_other_with_it(
    start: Start, wait_until: Wait, num_tokens: int
) -> None:
    records = start(settings={"flush_s": 0.5})
    for number in range(9):
        records.finish(make_record(number, prompt_tokens=num_tokens if number == 4 else 1))
    wait_until(lambda: records.health().written_records == 8)
    assert records.health().lost_records == 1
    page = asyncio.run(View(records).decisions(ALL))
    order = [decision.record.request_id for decision in page.decisions]
    assert order == [f"request-{number}" for number in (8, 7, 6, 5, 3, 2, 1, 0)]


def test_a_batch_in_doubt_is_not_written_twice(database: Database) -> None:
    entries = [encode_entry(Entry(make_record(number))) for number in range(3)]
    writer = DatabaseWriter(database)
    writer.write(LedgerBatch("one", 1, entries))
    # As if the answer to the commit had got lost.
    writer.write(LedgerBatch("one", 1, entries))
    writer.write(LedgerBatch("another", 1, entries[:1]))
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM moestro_decisions").scalar() == 4


class Surprised:
    """Fails as nobody foresaw until it is well, and counts what it is given then."""

    def __init__(self) -> None:
        self.is_well = False
        self.num_written = 0

    def write(self, batch: LedgerBatch) -> None:
        if not self.is_well:
            raise RuntimeError("nobody thought of this")
        self.num_written += len(batch.entries)

    def close(self) -> None:
        pass


def test_an_error_that_nobody_foresaw_is_shown_and_loses_nothing(
    shared: Path, wait_until: Wait
) -> None:
    writer = Surprised()
    ledger = Ledger(writer, LedgerCounts(SharedFile(shared, 0)), max_waiting=100, flush_s=0.01)
    ledger.start()
    for number in range(5):
        ledger.add(Entry(make_record(number)))
    wait_until(lambda: ledger.trouble is not None)
    assert "nobody thought of this" in (ledger.trouble or "")
    writer.is_well = True
    wait_until(lambda: writer.num_written == 5)
    wait_until(lambda: ledger.trouble is None)
    ledger.stop(5)
    assert ledger.num_lost == 0


@given(sizes=st.lists(st.integers(1, 200), max_size=4))
def test_stopping_writes_what_waits(
    sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "records.db"
    records = Records(RecordsConfig(url=f"sqlite:///{path}", flush_s=0.01))
    records.start()
    for size in sizes:
        for number in range(size):
            records.finish(make_record(number))
    records.stop(60)
    assert records.health().written_records == sum(sizes)
    with sqlite3.connect(path) as connection:
        counted = connection.execute("SELECT count(*) FROM moestro_decisions").fetchone()
    connection.close()
    assert counted == (sum(sizes),)


def test_a_locked_database_delays_and_loses_nothing(
    tmp_path: Path, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moestro.records.database._BUSY_S", 0.05)
    path = tmp_path / "records.db"
    records = Records(RecordsConfig(url=f"sqlite:///{path}", flush_s=0.02, max_waiting_records=50))
    records.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.perf_counter()
    for number in range(40):
        records.finish(make_record(number))
    assert time.perf_counter() - began < 0.5
    wait_until(lambda: records.health().trouble is not None)
    assert "locked" in (records.health().trouble or "")
    assert not records.health().is_reachable
    for number in range(40):
        records.finish(make_record(number))
    assert records.health().lost_records == 30
    other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: records.health().written_records == 50)
    wait_until(lambda: records.health().is_reachable)
    records.stop()


def test_a_stop_with_the_database_locked_loses_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moestro.records.database._BUSY_S", 0.05)
    path = tmp_path / "records.db"
    records = Records(RecordsConfig(url=f"sqlite:///{path}", flush_s=5))
    records.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    records.finish(make_record())
    records.stop(30)
    assert records.health().lost_records == 1
    other.close()


def test_a_deleted_file_is_made_anew_and_recording_goes_on(
    tmp_path: Path, wait_until: Wait
) -> None:
    path = tmp_path / "records.db"
    records = Records(RecordsConfig(url=f"sqlite:///{path}", flush_s=0.02, poll_s=0.05))
    records.start()
    records.finish(make_record())
    wait_until(lambda: records.health().written_records == 1)
    for file in tmp_path.iterdir():
        file.unlink()
    records.finish(make_record(1))
    wait_until(lambda: records.health().written_records == 2)
    assert count_rows(records) == 1
    records.stop()


def test_a_server_that_stops_in_the_middle_delays_and_loses_nothing(
    cluster: Cluster, wait_until: Wait
) -> None:
    config = RecordsConfig(url=cluster.new_database(), flush_s=0.02, poll_s=0.05)
    records = Records(config)
    records.start()
    records.finish(make_record())
    wait_until(lambda: records.health().written_records == 1)
    cluster.stop()
    try:
        for number in range(100):
            records.finish(make_record(number))
        wait_until(lambda: records.health().trouble is not None)
        assert records.health().lost_records == 0
        with pytest.raises(StorageError, match="database postgresql"):
            count_rows(records)
    finally:
        cluster.start()
    wait_until(lambda: records.health().written_records == 101)
    wait_until(lambda: records.health().is_reachable)
    assert count_rows(records) == 101
    records.stop()
