"""An engine in a real process: order, abort, death, hang, restart, stop, and no process left.

The engine in it is a fake without a model, so that each start takes a fraction of a second.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moestro.engine.process import EngineProcess, Feed, RestartConfig
from moestro.engine.request import EndEvent, EngineRequest, Event, FailEvent, TokensEvent
from moestro.errors import BackendError
from tests.flow.processes import children_of
from tests.unit.engine.fake_engine import DEADLY, ENDLESS, REFUSED

FACTORY = "tests.unit.engine.fake_engine:build"
QUICK = RestartConfig(first_pause_s=0.01, max_quick=4)
# Counts are told every quarter of a second at most, which is a sign of life early enough.
WATCHED = replace(QUICK, watchdog_s=1.0)
TIMEOUT_S = 60


def request(number: int = 0, last: int = 10, **changes: Any) -> EngineRequest:
    values: dict[str, Any] = {"id": f"r{number}", "prompt": (1, last), "max_tokens": 3}
    return EngineRequest(**(values | changes))


def run(claim: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(claim(), TIMEOUT_S)

    asyncio.run(limited())
    assert children() == []


@asynccontextmanager
async def running(
    factory: str = FACTORY, restart: RestartConfig = QUICK, **arguments: Any
) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(factory, arguments, restart)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        await asyncio.sleep(0.005)


async def ready(engine: EngineProcess) -> None:
    await until(lambda: engine.state == "ready")


async def read(feed: Feed) -> list[Event]:
    events: list[Event] = []
    while not events or not isinstance(events[-1], EndEvent | FailEvent):
        events += await feed.next()
    return events


def children() -> list[int]:
    """List this process's engines, zombies included."""
    found = []
    for pid in children_of("self"):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        found += [pid] if b"spawn_main" in command or not command else []
    return found


def signal_engine(number: signal.Signals) -> None:
    (pid,) = children()
    os.kill(pid, number)


def kill_engine() -> None:
    signal_engine(signal.SIGKILL)


def test_requests_are_answered_and_the_process_is_gone_after_stop() -> None:
    async def claim() -> None:
        async with running(load_s=0.1) as engine:
            seen = set()
            while engine.state == "loading":
                seen.add((engine.stage, engine.progress))
                await asyncio.sleep(0.01)
            assert ("reading weights", 0.25) in seen
            feeds = [engine.submit(request(number, last=20 * number)) for number in range(5)]
            for number, feed in enumerate(feeds):
                events = await read(feed)
                told = [each for each in events if isinstance(each, TokensEvent)]
                tokens = [score.token_id for each in told for score in each.scores]
                assert tokens == [20 * number + 1, 20 * number + 2, 20 * number + 3]
            assert len(children()) == 1
        assert engine.state == "stopped"

    run(claim)


def test_a_killed_engine_fails_its_requests_at_once_and_serves_the_next() -> None:
    async def claim() -> None:
        async with running(step_s=0.01) as engine:
            await ready(engine)
            feeds = [engine.submit(request(number, max_tokens=10_000)) for number in range(3)]
            for feed in feeds:
                await feed.next()
            kill_engine()
            began = time.monotonic()
            for feed in feeds:
                with pytest.raises(BackendError, match=r"engine died \(killed by signal 9\)"):
                    await read(feed)
            assert time.monotonic() - began < 1
            await engine.wait_ready()
            assert engine.restarts == 1
            assert isinstance((await read(engine.submit(request(9))))[-1], EndEvent)

    run(claim)


def test_a_stopped_engine_fails_its_requests_and_serves_the_next() -> None:
    async def claim() -> None:
        async with running(restart=WATCHED, step_s=0.01) as engine:
            await ready(engine)
            feeds = [engine.submit(request(number, max_tokens=10_000)) for number in range(3)]
            for feed in feeds:
                await feed.next()
            signal_engine(signal.SIGSTOP)
            began = time.monotonic()
            for feed in feeds:
                with pytest.raises(
                    BackendError, match=r"engine was stuck \(no sign of life for 1 s\)"
                ):
                    await read(feed)
            assert 0.7 < time.monotonic() - began < 10
            assert engine.state == "restarting"
            await engine.wait_ready()
            assert (engine.restarts, engine.hangs) == (1, 1)
            assert isinstance((await read(engine.submit(request(9))))[-1], EndEvent)

    run(claim)


def test_a_step_that_never_ends_is_noticed() -> None:
    async def claim() -> None:
        async with running(restart=WATCHED) as engine:
            await ready(engine)
            with pytest.raises(BackendError, match="engine was stuck"):
                await read(engine.submit(request(last=ENDLESS)))
            await engine.wait_ready()
            assert isinstance((await read(engine.submit(request(1))))[-1], EndEvent)

    run(claim)


def test_an_idle_engine_that_is_stopped_is_noticed() -> None:
    async def claim() -> None:
        async with running(restart=WATCHED) as engine:
            await ready(engine)
            signal_engine(signal.SIGSTOP)
            await until(lambda: engine.state == "restarting")
            await engine.wait_ready()
            assert (engine.restarts, engine.hangs) == (1, 1)

    run(claim)


def test_without_a_watchdog_a_stopped_engine_may_go_on() -> None:
    async def claim() -> None:
        async with running() as engine:
            await ready(engine)
            signal_engine(signal.SIGSTOP)
            feed = engine.submit(request())
            await asyncio.sleep(1.5)
            signal_engine(signal.SIGCONT)
            assert isinstance((await read(feed))[-1], EndEvent)
            assert engine.restarts == 0

    run(claim)


@pytest.mark.parametrize("slow", [{"load_s": 2.0}, {"step_s": 0.6}])
def test_neither_a_long_load_nor_a_long_step_counts_as_stuck(slow: dict[str, float]) -> None:
    async def claim() -> None:
        async with running(restart=WATCHED, **slow) as engine:
            await ready(engine)
            assert isinstance((await read(engine.submit(request())))[-1], EndEvent)
            assert engine.restarts == 0

    run(claim)


def test_time_in_which_everything_was_suspended_does_not_count() -> None:
    async def claim() -> None:
        async with running(restart=WATCHED, step_s=0.01) as engine:
            await ready(engine)
            feed = engine.submit(request(max_tokens=10_000))
            await feed.next()
            signal_engine(signal.SIGSTOP)
            # This program too: its event loop does nothing meanwhile.
            time.sleep(3)
            signal_engine(signal.SIGCONT)
            await asyncio.sleep(0.5)
            assert engine.restarts == 0
            engine.abort("r0")

    run(claim)


def test_a_step_that_raises_is_reported_and_the_engine_restarts() -> None:
    async def claim() -> None:
        async with running() as engine:
            await ready(engine)
            with pytest.raises(BackendError, match="RuntimeError: a step failed"):
                await read(engine.submit(request(last=DEADLY)))
            await engine.wait_ready()
            assert isinstance((await read(engine.submit(request(1))))[-1], EndEvent)

    run(claim)


def test_a_refused_request_fails_alone() -> None:
    async def claim() -> None:
        async with running() as engine:
            await ready(engine)
            bad, good = engine.submit(request(0, last=REFUSED)), engine.submit(request(1))
            (failed,) = await read(bad)
            assert isinstance(failed, FailEvent)
            assert failed.is_callers_fault
            assert isinstance((await read(good))[-1], EndEvent)
            assert engine.restarts == 0

    run(claim)


def test_an_aborted_request_leaves_the_engine() -> None:
    async def claim() -> None:
        async with running(step_s=0.01) as engine:
            await ready(engine)
            feed = engine.submit(request(max_tokens=10_000))
            await feed.next()
            await until(lambda: engine.stats is not None and engine.stats.num_running == 1)
            engine.abort("r0")
            await until(lambda: engine.stats is not None and engine.stats.num_running == 0)

    run(claim)


def test_a_damaged_checkpoint_is_not_tried_again() -> None:
    async def claim() -> None:
        async with running("tests.unit.engine.fake_engine:build_damaged") as engine:
            await until(lambda: engine.state == "stopped")
            assert engine.restarts == 0
            with pytest.raises(BackendError, match="weights are cut short"):
                await engine.wait_ready()

    run(claim)


def test_an_engine_that_dies_again_and_again_is_given_up() -> None:
    async def claim() -> None:
        restart = RestartConfig(first_pause_s=0.01, max_quick=2)
        async with running("tests.unit.engine.fake_engine:build_mortal", restart) as engine:
            await until(lambda: engine.state == "stopped")
            assert engine.restarts == 1
            assert "killed by signal 9" in str(engine.fault)

    run(claim)


def test_a_loader_that_comes_to_a_files_end_is_heard() -> None:
    async def claim() -> None:
        restart = RestartConfig(first_pause_s=0.01, max_quick=1)
        async with running("tests.unit.engine.fake_engine:build_short", restart) as engine:
            await until(lambda: engine.state == "stopped")
            assert "EOFError: the file ends" in str(engine.fault)

    run(claim)


def test_a_restart_is_waited_for_only_so_long_and_a_first_load_not_at_all() -> None:
    async def claim() -> None:
        restart = RestartConfig(first_pause_s=1.5, patience_s=1.0)
        async with running(restart=restart) as engine:
            with pytest.raises(BackendError, match="the model is loading") as loading:
                await engine.wait_ready()
            assert loading.value.retry_after_s == 1.0
            await ready(engine)
            kill_engine()
            await until(lambda: engine.state == "restarting")
            began = time.monotonic()
            with pytest.raises(BackendError, match="the model is restarting"):
                await engine.wait_ready()
            assert time.monotonic() - began < 1.4

    run(claim)


def test_neither_interrupt_nor_terminate_ends_the_engine_before_its_parent() -> None:
    async def claim() -> None:
        async with running(step_s=0.01) as engine:
            # As early as there is a process, before it can have set any handler.
            await until(lambda: bool(children()))
            (pid,) = children()
            for name in (signal.SIGINT, signal.SIGTERM):
                os.kill(pid, name)
            await ready(engine)
            feed = engine.submit(request())
            for name in (signal.SIGINT, signal.SIGTERM):
                os.kill(pid, name)
            assert isinstance((await read(feed))[-1], EndEvent)
            assert engine.restarts == 0

    run(claim)


def test_stopping_while_it_loads_leaves_no_process() -> None:
    async def claim() -> None:
        async with running(load_s=30) as engine:
            await until(lambda: bool(children()))
            began = time.monotonic()
            await engine.stop()
            assert time.monotonic() - began < 5

    run(claim)


def test_a_program_that_forgets_to_stop_its_engine_leaves_no_process() -> None:
    async def claim() -> None:
        engine = EngineProcess(FACTORY, {})
        await engine.start()
        await ready(engine)

    asyncio.run(claim())
    end = time.monotonic() + 5
    while children() and time.monotonic() < end:
        time.sleep(0.01)
    assert children() == []
