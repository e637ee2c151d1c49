"""Admission: who may ask what, in OpenAI's errors; and requests that flow while records cannot."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moestro.api.key_terms import KeyTerms
from moestro.errors import (
    CapacityError,
    ForbiddenError,
    MoestroError,
    QuotaError,
    StorageError,
    UnknownKeyError,
)
from moestro.records import keys
from moestro.records.config import RecordsConfig
from moestro.records.meters import Estimate
from moestro.records.records import Records
from moestro.records.shared import create_shared
from moestro.records.view import view_keys
from moestro.server.errors import describe
from tests.unit.records.made import make_record

SPAWN = multiprocessing.get_context("spawn")
Start = Callable[..., Records]
Wait = Callable[..., None]


def add_key(records: Records, wait_until: Wait, terms: KeyTerms) -> None:
    with records.database.write() as connection:
        keys.add_key(connection, terms)
    wait_until(lambda: records.ring.find(terms.name) is not None)


def spend(records: Records, number: int = 1, *, cost_usd: float) -> None:
    hold = records.admit("alice", "small", Estimate(cost_usd=min(2 * cost_usd, 0.5)))
    assert hold is not None
    record = make_record(number, began_at=time.time(), cost_usd=cost_usd)
    records.settle(hold, record)
    records.finish(record)


def test_who_has_no_key_here_has_no_limits(start: Start) -> None:
    records = start()
    for caller in (None, "from the configuration"):
        assert records.admit(caller, "small", Estimate(cost_usd=1e9)) is None
        assert records.allowed_models(caller) is None


def test_a_key_without_limits_shares_nothing(start: Start, wait_until: Wait) -> None:
    records = start()
    add_key(records, wait_until, KeyTerms(name="alice"))
    assert records.admit("alice", "small", Estimate()) is None


def test_a_model_that_a_key_may_not_use_is_403(start: Start, wait_until: Wait) -> None:
    records = start()
    add_key(records, wait_until, KeyTerms(name="alice", allowed_models=("small",)))
    records.admit("alice", "small", Estimate())
    assert records.allowed_models("alice") == ("small",)
    with pytest.raises(ForbiddenError, match="may not use large: it may use small") as caught:
        records.admit("alice", "large", Estimate())
    assert (describe(caught.value).status, describe(caught.value).code) == (403, "not_allowed")


def test_a_key_for_auto_may_be_sent_to_any_model(start: Start, wait_until: Wait) -> None:
    records = start()
    add_key(records, wait_until, KeyTerms(name="alice", allowed_models=("auto",)))
    assert records.admit("alice", "large", Estimate()) is None


def test_a_revoked_key_is_401(start: Start, wait_until: Wait) -> None:
    records = start()
    add_key(records, wait_until, KeyTerms(name="alice"))
    with records.database.write() as connection:
        keys.revoke_key(connection, "alice")
    wait_until(lambda: records.ring.find("alice").is_revoked)  # type: ignore[union-attr]
    with pytest.raises(UnknownKeyError, match="alice was revoked") as caught:
        records.admit("alice", "small", Estimate())
    assert (describe(caught.value).status, describe(caught.value).code) == (401, "invalid_api_key")


def test_a_spent_budget_is_429_insufficient_quota(start: Start, wait_until: Wait) -> None:
    records = start()
    add_key(records, wait_until, KeyTerms(name="alice", budget_usd=1.0))
    spend(records, cost_usd=0.75)
    with pytest.raises(QuotaError) as caught:
        records.admit("alice", "small", Estimate(cost_usd=0.5))
    problem = describe(caught.value)
    assert (problem.status, problem.kind, problem.code) == (
        429, "insufficient_quota", "insufficient_quota",
    )  # fmt: skip
    assert problem.retry_after_s == caught.value.resets_in_s
    records.admit("alice", "small", Estimate(cost_usd=0.25))


def test_a_request_gives_back_what_it_held_once(start: Start, wait_until: Wait) -> None:
    records = start()
    add_key(records, wait_until, KeyTerms(name="alice", concurrent_requests=2))
    first, _ = (records.admit("alice", "small", Estimate()) for _ in range(2))
    assert first is not None
    with pytest.raises(CapacityError):
        records.admit("alice", "small", Estimate())
    for _ in range(2):
        records.settle(first, make_record())
    records.admit("alice", "small", Estimate())
    with pytest.raises(CapacityError):
        records.admit("alice", "small", Estimate())


def test_what_another_host_spent_counts_within_moments(start: Start, wait_until: Wait) -> None:
    # Each has a shared file of its own, as on two machines; the database is what they share.
    one, other = start(), start()
    terms = KeyTerms(name="alice", budget_usd=1.0)
    for records in (one, other):
        if records is one:
            add_key(records, wait_until, terms)
        wait_until(lambda records=records: records.ring.find("alice") is not None)
        records.admit("alice", "small", Estimate())
    spend(one, cost_usd=1.0)

    def is_refused() -> bool:
        try:
            other.admit("alice", "small", Estimate())
        except QuotaError:
            return True
        return False

    wait_until(is_refused)
    third = start()
    with pytest.raises(QuotaError):
        third.admit("alice", "small", Estimate())
    (view,) = view_keys(one.database)
    assert (view.spent_usd, view.spent_tokens) == (1.0, 30)
    assert view.is_usable


def test_without_a_database_a_worker_does_not_start(tmp_path: Path) -> None:
    records = Records(RecordsConfig(url=f"sqlite:///{tmp_path}/none/records.db"))
    with pytest.raises(StorageError, match="unable to open"):
        records.start()
    records.stop()


def test_keys_hold_while_the_database_is_gone(start: Start, wait_until: Wait) -> None:
    records = start()
    with records.database.write() as connection:
        key = keys.add_key(connection, KeyTerms(name="alice", budget_usd=1.0)).encode()
    wait_until(lambda: records.find_name([key]) == "alice")

    def refuse() -> None:
        raise StorageError("gone")

    records.database._open = refuse  # type: ignore[method-assign, assignment]
    wait_until(lambda: records.health().trouble == "gone")
    assert records.find_name([key]) == "alice"
    spend(records, cost_usd=1.0)
    with pytest.raises(QuotaError):
        records.admit("alice", "small", Estimate())
    del records.database._open
    wait_until(lambda: records.health().written_records == 1)
    wait_until(lambda: records.health().trouble is None)


def fill_the_disk(path: Path, results: Any) -> None:
    config = RecordsConfig(url=f"sqlite:///{path}", flush_s=0.01, max_waiting_records=200)
    records = Records(config)
    records.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    slowest, added, deadline = 0.0, 0, time.monotonic() + 60
    while records.health().lost_records < 100 and time.monotonic() < deadline:
        began = time.process_time()
        records.finish(make_record(added, reason="x" * 1000))
        slowest = max(slowest, time.process_time() - began)
        added += 1
        time.sleep(0.001)
    full = records.health()
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    while records.health().waiting_records and time.monotonic() < deadline:
        time.sleep(0.01)
    records.stop(30)
    results.put((full, records.health(), added, slowest))


def test_a_full_disk_loses_records_counts_them_and_recovers(tmp_path: Path) -> None:
    results = SPAWN.Queue()
    child = SPAWN.Process(target=fill_the_disk, args=(tmp_path / "records.db", results))
    child.start()
    full, after, added, slowest = results.get(timeout=120)
    child.join()
    assert full.trouble is not None
    assert full.lost_records >= 100
    assert after.trouble is None
    assert after.written_records + after.lost_records == added
    assert after.written_records >= 200
    assert slowest < 0.1


def spend_together(worker: int, url: str, shared: Path, together: Any, results: Any) -> None:
    records = Records(
        RecordsConfig(url=url, flush_s=0.01, poll_s=0.02),
        shared=shared,
        worker=worker,
        is_keeper=worker == 0,
    )
    records.start()
    together.wait()
    cost = 0.0
    for number in range(150):
        try:
            spend(records, worker * 1000 + number, cost_usd=0.01)
        except MoestroError:
            continue
        cost += 0.01
    together.wait()
    records.stop(60)
    results.put((cost, records.health().lost_records))


def test_workers_spend_a_budget_together_and_the_database_agrees(url: str) -> None:
    setup = Records(RecordsConfig(url=url))
    setup.start()
    with setup.database.write() as connection:
        keys.add_key(connection, KeyTerms(name="alice", budget_usd=2.0, budget_period="total"))
    shared = create_shared(3)
    results, together = SPAWN.Queue(), SPAWN.Barrier(3)
    workers = [
        SPAWN.Process(target=spend_together, args=(worker, url, shared, together, results))
        for worker in range(3)
    ]
    for process in workers:
        process.start()
    found = [results.get(timeout=120) for _ in workers]
    for process in workers:
        process.join()
    shared.unlink()
    (view,) = view_keys(setup.database)
    setup.stop()
    total = sum(cost for cost, _ in found)
    assert [lost for _, lost in found] == [0, 0, 0]
    assert view.spent_usd == pytest.approx(total)
    assert 2.0 - 0.06 <= total <= 2.0 + 1e-9
