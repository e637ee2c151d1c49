"""The worker's loop: commands in, steps' events out, faults named, never busy when idle."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest

from moestro.engine.messages import Abort, AskStats, StepEvents, Submit
from moestro.engine.request import EngineRequest, Event, FailEvent, TokensEvent
from moestro.engine.stats import EngineStats
from moestro.engine.worker import STATS_EVERY_S, Worker
from tests.unit.engine.fake_engine import BROKEN, REFUSED, FakeEngine


def request(number: int = 0, last: int = 10, **changes: Any) -> EngineRequest:
    values: dict[str, Any] = {"id": f"r{number}", "prompt": (1, last), "max_tokens": 3}
    return EngineRequest(**(values | changes))


@contextmanager
def working(engine: FakeEngine) -> Iterator[Connection]:
    ours, theirs = Pipe()
    with ended_by_its_parent(Worker(engine, theirs), ours):
        yield ours


@contextmanager
def ended_by_its_parent(worker: Worker, pipe: Connection) -> Iterator[None]:
    def run() -> None:
        with pytest.raises(EOFError):
            worker.run()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        pipe.close()
        thread.join(10)
        assert not thread.is_alive()


def hear_until_end(pipe: Connection, request_id: str) -> list[StepEvents]:
    heard = []
    while not any(is_end(event, request_id) for event in (heard[-1].events if heard else ())):
        assert pipe.poll(10), "the worker said nothing"
        heard.append(pipe.recv())
    return heard


def is_end(event: Event, request_id: str) -> bool:
    return event.request_id == request_id and type(event).__name__ in ("EndEvent", "FailEvent")


def test_events_come_in_order_and_one_message_a_step() -> None:
    with working(FakeEngine()) as pipe:
        pipe.send(Submit(request()))
        heard = [batch for batch in hear_until_end(pipe, "r0") if batch.events]
    kinds = [[type(event).__name__ for event in batch.events] for batch in heard]
    assert kinds == [["StartEvent", "TokensEvent"], ["TokensEvent"], ["TokensEvent", "EndEvent"]]
    tokens = [event for batch in heard for event in batch.events if isinstance(event, TokensEvent)]
    assert [score.token_id for event in tokens for score in event.scores] == [11, 12, 13]


@pytest.mark.parametrize(
    ("last", "is_callers_fault", "param"), [(REFUSED, True, "prompt"), (BROKEN, False, None)]
)
def test_a_request_that_cannot_be_taken_fails_alone(
    last: int, is_callers_fault: bool, param: str | None
) -> None:
    engine = FakeEngine()
    with working(engine) as pipe:
        pipe.send(Submit(request(0, last=last)))
        pipe.send(Submit(request(1)))
        heard = hear_until_end(pipe, "r1")
    events = [event for batch in heard for event in batch.events]
    (failed,) = [event for event in events if isinstance(event, FailEvent)]
    assert (failed.request_id, failed.is_callers_fault) == ("r0", is_callers_fault)
    assert failed.param == param
    assert engine.aborted == ["r0"]
    assert sum(isinstance(event, TokensEvent) for event in events) == 3


def test_an_aborted_request_is_heard_of_no_more() -> None:
    engine = FakeEngine(step_s=0.01)
    with working(engine) as pipe:
        pipe.send(Submit(request(0, max_tokens=10_000)))
        assert pipe.poll(10)
        pipe.send(Abort("r0"))
        pipe.send(Submit(request(1)))
        events = [event for batch in hear_until_end(pipe, "r1") for event in batch.events]
    assert engine.aborted == ["r0"]
    assert not [event for event in events if is_end(event, "r0")]


def test_statistics_are_counted_seldom_while_busy_once_more_at_rest_and_when_asked() -> None:
    now = [0.0]
    engine = FakeEngine()
    ours, theirs = Pipe()
    worker = Worker(engine, theirs, clock=lambda: now[0])
    ours.send(Submit(request(max_tokens=100)))
    ours.send(AskStats())
    worker_steps(worker, 50)
    counted = [batch for batch in drain(ours) if batch.stats is not None]
    assert len(counted) == 1
    now[0] += STATS_EVERY_S
    worker_steps(worker, 1)
    tokens, counts = drain(ours)
    assert tokens.stats is None
    assert counts.stats is not None
    assert counts.stats.generation_tokens == 51


def test_what_a_step_gave_is_sent_before_anything_is_counted() -> None:
    ours, theirs = Pipe()
    sent_before_counting = []

    class SlowToCount(FakeEngine):
        def stats(self) -> EngineStats:
            sent_before_counting.append(ours.poll(0))
            return super().stats()

    worker = Worker(SlowToCount(), theirs, clock=lambda: 0.0)
    ours.send(Submit(request()))
    worker.turn()
    assert sent_before_counting == [True]


def worker_steps(worker: Worker, num: int) -> None:
    for _ in range(num):
        worker.turn()


def drain(pipe: Connection) -> list[StepEvents]:
    heard = []
    while pipe.poll(0):
        heard.append(pipe.recv())
    return heard


def test_an_idle_worker_waits_without_waking() -> None:
    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        return float(calls)

    ours, theirs = Pipe()
    with ended_by_its_parent(Worker(FakeEngine(), theirs, clock), ours):
        # The first statistics, then nothing.
        assert ours.poll(10)
        ours.recv()
        settled = calls
        assert not ours.poll(0.3)
        assert calls <= settled + 1
