"""The floor on live traffic: lost when the evidence says so, and audits that say what it is.

Next: scripted_gateway.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from moestro.cli import floor_watch
from moestro.cli.floor_watch import Auditor, FloorWatch
from moestro.errors import StorageError
from moestro.policy.audit import AuditPlan
from moestro.records.outcomes import NewOutcome
from moestro.records.records import Records
from moestro.records.view import View
from tests.unit.cli.following import LIMIT_S, follow
from tests.unit.cli.scripted_gateway import ScriptedGateway, finish

StartRecords = Callable[..., Records]


def build_gauge() -> Gauge:
    return Gauge("held", "Whether it is held.", registry=CollectorRegistry())


async def add_audits(records: Records, num: int, score: float, strongest: float | None) -> None:
    for number in range(num):
        outcome = NewOutcome(request_id=f"r{number}", score=score, strongest_score=strongest)
        await records.add_outcome(outcome)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor_watch, "_LOOK_S", 0.01)


def test_bad_audits_lose_the_floor_for_all_workers_and_each_says_so_once(
    start_records: StartRecords, caplog: pytest.LogCaptureFixture
) -> None:
    records, gauge = start_records(), build_gauge()
    watches = [FloorWatch(records, "promise", 0.95, gauge) for _ in range(2)]
    assert all(watch.is_held for watch in watches)

    async def work() -> None:
        await watches[0]._look()
        await add_audits(records, 40, 0.0, 1.0)
        await follow(*watches, until=lambda: not any(watch.is_held for watch in watches))
        await add_audits(records, 5, 0.0, 1.0)
        await watches[0]._look()
        await watches[0]._look()

    with caplog.at_level(logging.ERROR):
        asyncio.run(work())
    said = [line for line in caplog.messages if "does not hold on live traffic" in line]
    assert len(said) == len(watches)
    assert "the floor of 0.95" in said[0]
    assert gauge._value.get() == 0
    assert watches[0].monitor.floor == 0.95
    assert watches[0].lost_at == watches[1].lost_at
    assert watches[0].lost_at == pytest.approx(time.time(), abs=60)


def test_good_audits_and_plain_scores_keep_it(start_records: StartRecords) -> None:
    records = start_records()
    watch = FloorWatch(records, "promise", 0.9, build_gauge())

    async def work() -> None:
        await watch._look()
        await add_audits(records, 30, 1.0, 1.0)
        # No audits: nobody knows what the strongest model would have scored.
        await add_audits(records, 30, 0.0, None)
        await follow(watch, until=lambda: watch.monitor.num_audits >= 30)

    asyncio.run(work())
    assert watch.is_held
    assert watch.monitor.num_audits == 30


def test_another_promise_is_tested_anew(start_records: StartRecords) -> None:
    records = start_records()

    async def work() -> FloorWatch:
        await add_audits(records, 3, 1.0, 1.0)
        first = FloorWatch(records, "one", 0.9, build_gauge())
        await first._look()
        other = FloorWatch(records, "other", 0.8, build_gauge())
        await other._look()
        return other

    assert asyncio.run(work()).monitor.floor == 0.8


def test_a_new_promise_is_not_lost_by_the_audits_of_the_one_before(
    start_records: StartRecords,
) -> None:
    records = start_records()

    async def work() -> tuple[FloorWatch, FloorWatch]:
        first = FloorWatch(records, "one", 0.9, build_gauge())
        await first._look()
        await add_audits(records, 40, 0.0, 1.0)
        await first._look()
        second = FloorWatch(records, "two", 0.9, build_gauge())
        await second._look()
        await add_audits(records, 3, 1.0, 1.0)
        await second._look()
        return first, second

    first, second = asyncio.run(work())
    assert (first.is_held, first.monitor.num_audits > 0) == (False, True)
    assert (second.is_held, second.monitor.num_audits) == (True, 3)


def test_a_state_that_is_damaged_is_begun_anew(
    start_records: StartRecords, caplog: pytest.LogCaptureFixture
) -> None:
    records = start_records()

    async def work() -> FloorWatch:
        await add_audits(records, 3, 1.0, 1.0)
        await records.advance("floor:promise", lambda _, __: {"floor": "none"}, kind="audit")
        await add_audits(records, 2, 1.0, 1.0)
        watch = FloorWatch(records, "promise", 0.9, build_gauge())
        await watch._look()
        return watch

    assert asyncio.run(work()).monitor.num_audits == 2
    assert "the floor monitor's state is damaged" in caplog.text


def test_a_database_that_is_gone_for_a_while_is_asked_again() -> None:
    class Failing:
        num_asked = 0

        async def advance(self, *_: object, **__: object) -> dict[str, Any]:
            self.num_asked += 1
            raise StorageError("gone")

    records = Failing()
    watch = FloorWatch(records, "promise", 0.9, build_gauge())  # type: ignore[arg-type]
    asyncio.run(follow(watch, until=lambda: records.num_asked > 2))
    assert watch.is_held


def audit(records: Records, gateway: ScriptedGateway, judge: str, *finished: Any) -> list[Any]:
    """Audit requests and return the outcomes that this leaves."""

    async def work() -> list[Any]:
        plan = AuditPlan(share=1.0)
        auditor = Auditor(records, lambda: gateway, plan, judge)  # type: ignore[arg-type,return-value]
        for each in finished:
            auditor(each)
        async with asyncio.timeout(LIMIT_S):
            while auditor._tasks:
                await asyncio.sleep(0.01)
        return list(await View(records).outcomes())

    return asyncio.run(work())


@pytest.mark.parametrize(("other", "score"), [("42.", 1.0), ("43", 0.0)])
def test_answers_that_say_the_same_match(
    start_records: StartRecords, other: str, score: float
) -> None:
    gateway = ScriptedGateway(large=other)
    [outcome] = audit(start_records(), gateway, "match", finish("42"))
    assert (outcome.score, outcome.strongest_score) == (score, 1.0)
    assert (outcome.request_id, outcome.model) == ("request-0", "small")
    [body] = gateway.bodies()
    assert body["model"] == "large"
    assert body["temperature"] == 0.5
    assert not {"stream", "stream_options"} & set(body)
    assert gateway.calls[0].request_id == "request-0-audit"
    assert gateway.calls[0].is_audit


def test_a_judge_grades_both_answers_unnamed(start_records: StartRecords) -> None:
    gateway = ScriptedGateway(large="forty-two", judge="score: 0.5")
    [outcome] = audit(start_records(), gateway, "judge", finish("42"))
    assert (outcome.score, outcome.strongest_score) == (0.5, 0.5)
    texts = [body["messages"][0]["content"] for body in gateway.bodies()[1:]]
    assert ["42" in texts[0], "forty-two" in texts[1]] == [True, True]
    assert all("six times seven?" in text for text in texts)
    assert not any("large" in text or "small" in text for text in texts)


@pytest.mark.parametrize(("judge", "score"), [("match", 1.0), ("judge", 0.5)])
def test_a_request_that_the_policy_sent_to_the_strongest_counts_with_one_answer_and_one_score(
    start_records: StartRecords, judge: str, score: float
) -> None:
    gateway = ScriptedGateway(judge="score: 0.5")
    [outcome] = audit(start_records(), gateway, judge, finish(model="large"))
    assert (outcome.score, outcome.strongest_score) == (score, score)
    assert [body["model"] for body in gateway.bodies()] == ["judge"] * (judge == "judge")


@pytest.mark.parametrize(
    ("gateway", "judge"),
    [
        (ScriptedGateway(), "match"),
        (ScriptedGateway(large=400), "match"),
        (ScriptedGateway(large="42", judge="a fine answer"), "judge"),
    ],
    ids=["the strongest fails", "the strongest refuses", "a judge without a verdict"],
)
def test_an_audit_that_fails_leaves_no_outcome(
    start_records: StartRecords,
    gateway: ScriptedGateway,
    judge: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert audit(start_records(), gateway, judge, finish()) == []
    assert "the audit of request request-0 came to nothing" in caplog.text


@pytest.mark.parametrize(
    ("finished", "strongest"),
    [
        (finish(is_auto=False), "large"),
        (finish(model="large", is_distrusted=True), "large"),
        (finish(""), "large"),
        (finish(), None),
    ],
    ids=["named", "the policy set aside", "no text", "no policy"],
)
def test_what_needs_no_audit_gets_none(
    start_records: StartRecords, finished: Any, strongest: str | None
) -> None:
    gateway = ScriptedGateway(strongest, large="42")
    assert audit(start_records(), gateway, "match", finished) == []
    assert not gateway.calls


def test_audits_take_no_more_than_a_few_places(start_records: StartRecords) -> None:
    gateway = ScriptedGateway(large="42")
    many = [finish(request_id=f"q{number}") for number in range(40)]
    outcomes = audit(start_records(), gateway, "match", *many)
    assert len(outcomes) == len(gateway.calls) == floor_watch._MOST_AUDITS
