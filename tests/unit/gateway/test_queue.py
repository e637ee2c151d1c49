"""Places at backends: a limit that holds, callers in turn, and no at once where waiting is in vain.

Next: test_breaker.py.
"""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from moestro.errors import BackendError, CapacityError
from moestro.gateway.config import BreakerConfig, QueueConfig
from moestro.gateway.faults import Fault
from moestro.gateway.fleet import BackendConfig
from moestro.gateway.health import Health
from moestro.gateway.queue import Line, Member
from moestro.gateway.shared import Alone
from moestro.gateway.upstream import build_upstream
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import QUICK, Asking, answer_of, gateway_over, reset, stall, well


def line(
    *limits: int, weights: tuple[float, ...] = (), shared: Alone | None = None, **queue: Any
) -> Line:
    shared = shared or Alone()
    members = []
    for index, limit in enumerate(limits):
        weight = weights[index] if weights else 1.0
        config = BackendConfig(url="http://127.0.0.1:1/v1", max_concurrent=limit, weight=weight)
        upstream = build_upstream(f"m/{index}", "m", config, copy=index)
        members.append(Member(upstream, Health(upstream, shared, BreakerConfig(failures=1))))
    return Line("m", members, QueueConfig(**queue), shared, chance=random.Random(1))


def test_the_limit_holds_and_places_are_given_on() -> None:
    async def work() -> list[str]:
        places = line(1, 1)
        first, second = await places.enter("a"), await places.enter("a")
        assert {first.name, second.name} == {"m/0", "m/1"}
        waiting = asyncio.ensure_future(places.enter("b"))
        await asyncio.sleep(0)
        assert (places.num_waiting, waiting.done()) == (1, False)
        places.leave(second)
        return [second.name, (await waiting).name]

    gone, given = run(work())
    assert gone == given


def test_callers_take_turns_however_much_one_asks() -> None:
    async def work() -> list[str]:
        places = line(1)
        held = await places.enter("a")
        served: list[str] = []

        async def ask(caller: str) -> None:
            member = await places.enter(caller)
            served.append(caller)
            await asyncio.sleep(0)
            places.leave(member)

        tasks = [asyncio.ensure_future(ask(caller)) for caller in "aaaabbc"]
        await asyncio.sleep(0)
        places.leave(held)
        await asyncio.gather(*tasks)
        return served

    assert "".join(run(work())) == "abcabaa"


def test_a_full_line_and_a_slow_one_refuse_at_once() -> None:
    async def work() -> None:
        places = line(1, max_waiting=1, max_wait_s=5)
        await places.enter("a")
        waiting = asyncio.ensure_future(places.enter("b"))
        await asyncio.sleep(0)
        with pytest.raises(CapacityError, match="1 requests wait for model m"):
            await places.enter("c")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert places.num_waiting == 0
        places.members[0].health.latency.whole.add(60)
        with pytest.raises(CapacityError) as raised:
            await places.enter("c")
        assert raised.value.retry_after_s == 60

    run(work())


def test_waiting_ends_in_time() -> None:
    async def work() -> None:
        places = line(1, max_wait_s=0.05)
        member = await places.enter("a")
        with pytest.raises(CapacityError):
            await places.enter("b")
        places.leave(member)
        assert (await places.enter("b")).name == "m/0"

    run(work())


@pytest.mark.parametrize("leaves_first", [False, True])
def test_a_place_that_comes_as_its_waiter_leaves_is_not_lost(leaves_first: bool) -> None:
    async def work() -> None:
        places = line(1)
        member = await places.enter("a")
        waiting = asyncio.ensure_future(places.enter("b"))
        await asyncio.sleep(0)
        acts = [lambda: places.leave(member), waiting.cancel]
        for act in reversed(acts) if leaves_first else acts:
            act()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (places.members[0].health.num_in_flight, places.num_waiting) == (0, 0)

    run(work())


def test_another_workers_place_is_seen() -> None:
    async def work() -> None:
        shared = Alone()
        places, other = line(1, shared=shared), line(1, shared=shared)
        member = await other.enter("a")
        waiting = asyncio.ensure_future(places.enter("b"))
        await asyncio.sleep(0)
        other.leave(member)
        assert (await waiting).name == "m/0"

    run(work())


def test_nobody_to_ask_is_said_at_once() -> None:
    async def work() -> None:
        places = line(1)
        with pytest.raises(BackendError, match="does not answer"):
            await places.enter("a", barred=["m/0"])
        places.members[0].health.note_fault(Fault("broken", "m/0 broke"))
        # Whoever comes later hears why, too, and when to come again.
        said = r"m does not answer \(m/0 broke\): try again in \d+ s"
        with pytest.raises(BackendError, match=said) as refused:
            await places.enter("a")
        assert refused.value.retry_after_s
        resting = line(1)
        resting.members[0].health.note_fault(Fault("busy", "m/0 is busy", retry_after_s=9))
        with pytest.raises(CapacityError) as raised:
            await resting.enter("a")
        assert 8 < raised.value.retry_after_s <= 9

    run(work())


def test_weights_share_out_a_light_load_and_a_heavy_one() -> None:
    async def work() -> tuple[int, int]:
        places = line(1000, 1000, weights=(1, 3))
        light = [0, 0]
        for _ in range(400):
            member = await places.enter("a")
            light[int(member.name[-1])] += 1
            places.leave(member)
        for _ in range(400):
            await places.enter("a")
        return light[1], places.members[1].health.num_in_flight

    light, heavy = run(work())
    assert 260 <= light <= 340
    assert 298 <= heavy <= 302


def test_one_tried_before_comes_last() -> None:
    async def work() -> str:
        return (await line(5, 5).enter("a", tried=["m/0"])).name

    assert run(work()) == "m/1"


def test_an_overloaded_fleet_answers_429_at_once_and_the_rest_in_full() -> None:
    async def slow(asking: Asking) -> None:
        await asyncio.sleep(0.1)
        await asking.whole(answer_of(asking.body))

    async def work() -> Any:
        config = replace(QUICK, queue=QueueConfig(max_waiting=2, max_wait_s=5))
        async with gateway_over({"m": [slow]}, config, max_concurrent=1) as running:
            asking = [running.ask(caller=str(number % 3)) for number in range(6)]
            answers = await asyncio.gather(*asking, return_exceptions=True)
            return answers, running

    answers, running = run(work())
    assert [isinstance(each, CapacityError) for each in answers] == [False] * 3 + [True] * 3
    assert running.gateway.view().num_refused == 3


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_hedge_answers_while_the_first_is_silent(is_stream: bool) -> None:
    async def work() -> Any:
        config = replace(QUICK, hedge_after_s=0.05)
        around = {"chance": random.Random(2)}
        async with gateway_over({"m": [stall, well]}, config, around=around) as running:
            for _ in range(4):
                if is_stream:
                    await running.stream()
                else:
                    await running.ask()
            return running

    running = run(work())
    assert [record.outcome for record in running.records] == ["answered"] * 4
    assert running.gateway.view().models[0].num_in_flight == 0
    assert max(record.num_attempts for record in running.records) == 2


def test_a_hedge_that_fails_leaves_the_first_to_answer() -> None:
    async def slow(asking: Asking) -> None:
        await asyncio.sleep(0.2)
        await well(asking)

    async def work() -> Any:
        config = replace(QUICK, hedge_after_s=0.05)
        async with gateway_over({"m": [slow, reset]}, config) as running:
            for _ in range(4):
                await running.ask()
            return running

    running = run(work())
    assert [record.outcome for record in running.records] == ["answered"] * 4
