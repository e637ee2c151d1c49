"""A backend that recovers gets one request, and the next as soon as that one is over: however it
ended.

Next: test_breaker.py, test_queue.py.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest

from moestro.errors import CapacityError
from moestro.gateway.faults import Fault
from moestro.gateway.health import Health
from tests.unit.gateway.test_cascade import Above, Says, says
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    Running,
    breaks,
    endless,
    gateway_over,
    read_stream,
    replies,
    reset,
    well,
    whole_text,
)

LONELY = replace(QUICK, retries=0)


@dataclass
class Tripped:
    """A backend whose breaker has just opened, and its clock."""

    health: Health

    def rest(self) -> None:
        """Let pass what it is left alone for."""
        clock = self.health._clock
        self.health._clock = lambda: clock() + QUICK.breaker.open_s

    @property
    def breaker(self) -> str:
        return self.health.view(0).breaker


def trip(running: Running, model: str, index: int = 0) -> Tripped:
    health = running.gateway._lines[model].members[index].health
    for _ in range(QUICK.breaker.failures):
        health.note_fault(Fault("status", "it failed"))
    assert not health.may_ask()
    return Tripped(health)


@pytest.mark.parametrize("status", [429, 503])
def test_one_that_is_full_is_asked_again_when_it_said_so(status: int) -> None:
    async def work() -> int:
        behaviors: Any = {"m": [[replies(status, b"", "retry-after: 0"), well]]}
        async with gateway_over(behaviors, LONELY) as running:
            trip(running, "m").rest()
            with pytest.raises(Exception, match="m/0 is"):
                await running.ask()
            return (await running.ask()).status

    assert run(work()) == 200


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_that_a_cascade_does_not_keep_closes_a_breaker(is_stream: bool) -> None:
    async def work() -> str:
        behaviors: Any = {"weak": [says(-3)], "strong": [well]}
        policy = ScriptedPolicy(cascade=Above())
        async with gateway_over(behaviors, LONELY, policy=policy) as running:
            weak = trip(running, "weak")
            weak.rest()
            if is_stream:
                await running.stream(model="auto")
            else:
                await running.ask(model="auto")
            assert running.records[0].reason == "cascade: not sure enough"
            return weak.breaker

    assert run(work()) == "closed"


def test_who_leaves_while_a_cascade_reads_lets_the_next_one_tell() -> None:
    async def work() -> bool:
        behaviors: Any = {"weak": [endless], "strong": [well]}
        policy = ScriptedPolicy(cascade=Says("."))
        async with gateway_over(behaviors, LONELY, policy=policy) as running:
            weak = trip(running, "weak")
            weak.rest()
            asking = asyncio.ensure_future(running.stream(model="auto"))
            server = running.servers["weak"][0]
            while not server.asked:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert not weak.health.may_ask()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.wait_for(server.asked[0].is_gone.wait(), 2)
            assert weak.health.num_in_flight == 0
            return weak.health.may_ask()

    assert run(work())


def test_who_goes_on_with_a_stream_is_well() -> None:
    async def work() -> tuple[str, str]:
        async with gateway_over({"m": [breaks(4, reset), well]}) as running:
            second = trip(running, "m", 1)
            reply = await running.ask(stream=True)
            second.rest()
            assert not isinstance(reply.body, bytes)
            data = b"".join([piece async for piece in reply.body])
            return read_stream(data)[0], second.breaker

    assert run(work()) == (whole_text(), "closed")


def test_who_refuses_to_go_on_with_a_stream_is_well() -> None:
    async def work() -> tuple[bool, str]:
        async with gateway_over({"m": [breaks(4, reset), replies(400)]}) as running:
            second = trip(running, "m", 1)
            reply = await running.ask(stream=True)
            second.rest()
            assert not isinstance(reply.body, bytes)
            data = b"".join([piece async for piece in reply.body])
            return b"nobody could go on" in data, second.breaker

    assert run(work()) == (True, "closed")


def test_a_full_backend_is_named_though_another_request_was_answered_meanwhile() -> None:
    async def work() -> None:
        async with gateway_over({"m": [replies(429, b"", "retry-after: 30")]}, LONELY) as running:
            with pytest.raises(CapacityError):
                await running.ask()
            running.gateway._lines["m"].members[0].health.note_success()
            with pytest.raises(CapacityError, match=r"^m/0 is asked too much: try again in"):
                await running.ask()

    run(work())
