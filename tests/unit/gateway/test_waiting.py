"""Who waits at full backends waits for nobody else than those before it, and asks for no more.

Next: test_queue.py.
"""

import asyncio
import random
from dataclasses import replace
from typing import Any, cast

import pytest

from moestro.errors import CapacityError
from moestro.gateway.attempts import _race
from moestro.gateway.config import BreakerConfig
from moestro.gateway.faults import Fault
from moestro.gateway.fleet import BackendConfig
from moestro.gateway.health import Health
from moestro.gateway.legs import Incoming, Leg
from moestro.gateway.queue import Line, Member
from moestro.gateway.shared import Alone
from moestro.gateway.upstream import build_upstream
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.test_queue import line
from tests.unit.gateway.upstreams import QUICK, Asking, answer_of, gateway_over


def test_one_that_may_not_go_where_a_place_is_keeps_nobody_from_it() -> None:
    async def work() -> None:
        places = line(1, 1)
        first, second = await places.enter("a"), await places.enter("a")
        picky = asyncio.ensure_future(places.enter("a", barred=[second.name]))
        other = asyncio.ensure_future(places.enter("a"))
        await asyncio.sleep(0)
        places.leave(second)
        assert (await asyncio.wait_for(other, 1)).name == second.name
        places.leave(first)
        assert (await picky).name == first.name

    run(work())


def test_a_newcomer_gets_a_place_that_nobody_who_waits_may_have() -> None:
    async def work() -> None:
        places = line(1, 1)
        first, second = await places.enter("a"), await places.enter("a")
        picky = asyncio.ensure_future(places.enter("a", barred=[second.name]))
        await asyncio.sleep(0)
        places.leave(second)
        newcomer = asyncio.ensure_future(places.enter("b"))
        for _ in range(3):
            await asyncio.sleep(0)
        assert newcomer.done()
        assert not picky.done()
        picky.cancel()
        places.leave(first)

    run(work())


def frail_line(num_places: int, now: list[float]) -> tuple[Line, Health]:
    """Return a line for one backend whose breaker opens at one fault, and what it knows."""
    shared = Alone()
    config = BackendConfig(url="http://127.0.0.1:1/v1", max_concurrent=num_places)
    upstream = build_upstream("m/0", "m", config)
    health = Health(upstream, shared, BreakerConfig(failures=1), lambda: now[0])
    return Line("m", [Member(upstream, health)], QUICK.queue, shared), health


def test_a_backend_that_recovers_is_sent_one_of_those_who_wait() -> None:
    async def work() -> None:
        now = [0.0]
        places, health = frail_line(4, now)
        held = [await places.enter("a") for _ in range(4)]
        waiting = [asyncio.ensure_future(places.enter("b")) for _ in range(3)]
        await asyncio.sleep(0)
        health.note_fault(Fault("broken", "m/0 broke"))
        now[0] = 10.0
        for member in held:
            places.leave(member)
        await asyncio.sleep(0.1)
        assert sum(task.done() for task in waiting) == 1
        health.note_success()
        await asyncio.wait_for(asyncio.gather(*waiting), 1)

    run(work())


def test_a_place_that_nobody_wanted_any_more_does_not_keep_others_out() -> None:
    async def work() -> None:
        now = [0.0]
        places, health = frail_line(1, now)
        held = await places.enter("a")
        waiting = asyncio.ensure_future(places.enter("b"))
        await asyncio.sleep(0)
        health.note_fault(Fault("broken", "m/0 broke"))
        now[0] = 10.0
        places.leave(held)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await places.enter("c")).name == "m/0"

    run(work())


async def slow(asking: Asking) -> None:
    await asyncio.sleep(0.3)
    await asking.whole(answer_of(asking.body))


def test_a_request_that_waits_for_a_place_is_not_asked_twice() -> None:
    async def work() -> Any:
        config = replace(QUICK, hedge_after_s=0.05)
        async with gateway_over({"m": [slow, slow]}, config, max_concurrent=1) as running:
            asking = [asyncio.ensure_future(running.ask()) for _ in range(4)]
            await asyncio.sleep(0.2)
            num_waiting = running.gateway.view().models[0].num_waiting
            await asyncio.gather(*asking)
            return num_waiting, running.records

    num_waiting, records = run(work())
    assert num_waiting == 2
    assert [record.num_attempts for record in records] == [1] * 4


def test_a_hedge_goes_to_another_backend_than_the_slow_one() -> None:
    async def work() -> Any:
        config = replace(QUICK, hedge_after_s=0.05)
        around = {"chance": random.Random(2)}
        full = [slow, slow]
        async with gateway_over({"m": full}, config, max_concurrent=2, around=around) as running:
            await running.ask()
            return [len(server.asked) for server in running.servers["m"]]

    assert run(work()) == [1, 1]


def test_who_leaves_as_a_hedge_is_decided_leaves_no_place_taken() -> None:
    class Silent:
        status = 200

        def close(self) -> None:
            pass

    async def work() -> list[int]:
        places = line(1, 1)

        async def win() -> Leg:
            member = await places.enter(None)
            return Leg(member=member, line=places, incoming=cast(Incoming, Silent()))

        async def lose() -> Leg:
            try:
                return await asyncio.Future()
            finally:
                await asyncio.sleep(0.01)

        race = asyncio.ensure_future(
            _race(asyncio.ensure_future(win()), asyncio.ensure_future(lose()))
        )
        await asyncio.sleep(0.005)
        if not race.cancel():
            race.result().close()
        await asyncio.gather(race, return_exceptions=True)
        await asyncio.sleep(0.02)
        return [member.health.num_in_flight for member in places.members]

    assert run(work()) == [0, 0]


def test_who_may_not_go_elsewhere_hears_how_long_those_rest_where_it_may() -> None:
    async def work() -> float | None:
        places = line(1, 1)
        full = places.members[0].health
        full.note_fault(Fault("busy", "it is full", retry_after_s=30))
        with pytest.raises(CapacityError, match="m/0 is asked too much") as raised:
            await places.enter("a", barred=["m/1"])
        return raised.value.retry_after_s

    assert run(work()) == pytest.approx(30, abs=1)
