"""Outcomes: one order for all workers, and every state advances along it exactly once."""

import asyncio
import multiprocessing
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from moestro.api.record_view import ScoredOutcome
from moestro.errors import CapacityError, DataError
from moestro.records import outcomes
from moestro.records.config import RecordsConfig
from moestro.records.database import Database
from moestro.records.outcomes import NewOutcome, advance
from moestro.records.records import Records
from moestro.records.view import View

SPAWN = multiprocessing.get_context("spawn")


def append(database: Database, *scores: float, **values: Any) -> None:
    for score in scores:
        with database.write() as connection:
            outcomes.append_outcome(connection, NewOutcome(request_id="r", score=score, **values))


def collect(state: dict[str, Any], outcome: ScoredOutcome) -> dict[str, Any]:
    return {"scores": [*state.get("scores", []), outcome.score]}


def test_outcomes_come_back_in_their_order(start: Callable[..., Records]) -> None:
    records = start()
    numbers = [
        asyncio.run(records.add_outcome(NewOutcome(request_id="r", score=score, note="n")))
        for score in (0.0, 0.5, 1.0)
    ]
    audit = NewOutcome(request_id="a", score=0.5, strongest_score=1.0, model="small", caller="al")
    asyncio.run(records.add_outcome(audit))
    assert numbers == [1, 2, 3]
    with records.database.read() as connection:
        later = outcomes.outcomes_since(connection, 1)
        audits = outcomes.outcomes_since(connection, 0, kind="audit")
    assert [outcome.id for outcome in later] == [2, 3, 4]
    assert [(found.kind, found.model, found.strongest_score) for found in audits] == [
        ("audit", "small", 1.0)
    ]
    view = View(records)
    shown = asyncio.run(view.outcomes(kind="score", before=3, limit=5))
    assert [outcome.id for outcome in shown] == [2, 1]
    assert asyncio.run(view.outcomes(limit=1))[0].id == 4


@pytest.mark.parametrize(
    "values",
    [
        {"score": 1.5},
        {"score": float("nan")},
        {"score": 1.0, "strongest_score": -0.1},
        {"score": 1.0, "note": "x" * 2001},
    ],
)
def test_what_is_no_score_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        NewOutcome(request_id="r", **values)


def test_a_state_is_replaced_only_by_who_has_seen_it(database: Database) -> None:
    with database.write() as connection:
        assert outcomes.load_state(connection, "floor") == ({}, 0)
        assert outcomes.save_state(connection, "floor", {"a": 1}, 0)
        assert not outcomes.save_state(connection, "floor", {"a": 2}, 0)
        assert outcomes.save_state(connection, "floor", {"a": 3}, 1)
        assert not outcomes.save_state(connection, "floor", {"a": 4}, 1)
        assert outcomes.load_state(connection, "floor") == ({"a": 3}, 2)


def test_a_state_sees_every_outcome_once(database: Database) -> None:
    assert advance(database, "floor", collect) == {}
    append(database, 0.25, 0.5)
    append(database, 0.75, strongest_score=1.0)
    assert advance(database, "floor", collect) == {"scores": [0.25, 0.5, 0.75]}
    append(database, 1.0)
    assert advance(database, "floor", collect) == {"scores": [0.25, 0.5, 0.75, 1.0]}
    assert advance(database, "floor", collect) == {"scores": [0.25, 0.5, 0.75, 1.0]}
    assert advance(database, "audits", collect, kind="audit") == {"scores": [0.75]}


def test_a_state_that_falls_behind_for_ever_is_told(database: Database) -> None:
    append(database, 0.5)

    def interfere(state: dict[str, Any], outcome: ScoredOutcome) -> dict[str, Any]:
        append(database, 0.5)
        return state

    with pytest.raises(CapacityError, match="floor is behind"):
        advance(database, "floor", interfere)


def work(url: str, together: Any, results: Any) -> None:
    with closing(Database(RecordsConfig(url=url))) as database:
        database.open()
        together.wait()
        for number in range(20):
            append(database, number / 100)
            advance(database, "floor", collect)
        results.put(advance(database, "floor", collect))


def test_workers_advance_a_state_together_without_loss_or_repeat(url: str) -> None:
    results, together = SPAWN.Queue(), SPAWN.Barrier(3)
    workers = [SPAWN.Process(target=work, args=(url, together, results)) for _ in range(3)]
    for process in workers:
        process.start()
    states = [results.get(timeout=200) for _ in workers]
    for process in workers:
        process.join()
    longest = max(states, key=lambda state: len(state["scores"]))
    assert sorted(longest["scores"]) == sorted([number / 100 for number in range(20)] * 3)


def test_numbers_appear_in_their_order_whoever_commits_last(database: Database) -> None:
    append(database, 0.0)
    begun, finish = threading.Event(), threading.Event()

    def append_slowly() -> None:
        with database.write() as connection:
            outcomes.append_outcome(connection, NewOutcome(request_id="slow", score=1.0))
            begun.set()
            finish.wait(20)

    slow = threading.Thread(target=append_slowly)
    slow.start()
    begun.wait(20)
    fast = threading.Thread(target=append, args=(database, 0.5))
    fast.start()
    fast.join(0.2)
    with database.read() as connection:
        assert [outcome.id for outcome in outcomes.outcomes_since(connection, 0)] == [1]
    finish.set()
    slow.join()
    fast.join()
    with database.read() as connection:
        found = [outcome.request_id for outcome in outcomes.outcomes_since(connection, 0)]
    assert found == ["r", "slow", "r"]
