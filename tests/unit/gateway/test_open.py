"""However a request ends, it is counted once, and then no more: nothing stays open or taken."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from moestro.api.relay import Reply
from moestro.errors import MoestroError, QuotaError
from moestro.gateway.books import AnswerBound
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    Behavior,
    Running,
    breaks,
    endless,
    gateway_over,
    replies,
    reset,
    stall,
    well,
)

End = Callable[[Running], Awaitable[None]]


class ScriptedDoor:
    """Lets nobody in whose key is empty."""

    keeps_texts = True

    def admit(
        self,
        caller: str | None,
        model: str,
        *,
        num_prompt: int,
        answer: AnswerBound,
    ) -> None:
        if caller == "poor":
            raise QuotaError("nothing left")

    def finish(self, record: object, *, prompt: str, answer: str) -> None:
        pass


async def _read(reply: Reply) -> None:
    assert not isinstance(reply.body, bytes)
    async for _ in reply.body:
        pass


async def whole(running: Running) -> None:
    await running.ask()


async def streamed(running: Running) -> None:
    await running.stream()


async def closed_before_it_is_read(running: Running) -> None:
    reply = await running.ask(stream=True)
    assert not isinstance(reply.body, bytes)
    await reply.body.aclose()


async def closed_in_the_middle(running: Running) -> None:
    reply = await running.ask(stream=True)
    assert not isinstance(reply.body, bytes)
    await anext(reply.body)
    await reply.body.aclose()


async def closed_twice_after_its_end(running: Running) -> None:
    reply = await running.ask(stream=True)
    assert not isinstance(reply.body, bytes)
    await _read(reply)
    await reply.body.aclose()


async def left_before_its_answer(running: Running) -> None:
    asking = asyncio.create_task(running.ask())
    while not running.servers["m"][0].asked:
        await asyncio.sleep(0.01)
    assert running.gateway.num_open == 1
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking


async def unreadable(running: Running) -> None:
    await running.ask(messages="no list")


async def for_nobody(running: Running) -> None:
    await running.ask(model="unknown")


async def beyond_its_means(running: Running) -> None:
    await running.ask(caller="poor")


ENDS: list[tuple[End, Behavior, str]] = [
    (whole, well, "answered"),
    (streamed, well, "answered"),
    (closed_before_it_is_read, well, "left"),
    (closed_in_the_middle, endless, "left"),
    (closed_twice_after_its_end, well, "answered"),
    (left_before_its_answer, stall, "left"),
    (whole, replies(500), "failed"),
    (whole, replies(400), "refused"),
    (streamed, breaks(5, reset), "failed"),
    (unreadable, well, "refused"),
    (for_nobody, well, "refused"),
    (beyond_its_means, well, "refused"),
]


@pytest.mark.parametrize(
    ("end", "behavior", "outcome"),
    ENDS,
    ids=[f"{end.__name__}-{number}" for number, (end, _, _) in enumerate(ENDS)],
)
def test_nothing_stays_open_after_any_end(end: End, behavior: Behavior, outcome: str) -> None:
    async def work() -> None:
        config = replace(QUICK, retries=0)
        around = {"door": ScriptedDoor()}
        async with gateway_over({"m": [behavior]}, config, around=around) as running:
            with suppress(MoestroError):
                await end(running)
            assert running.gateway.num_open == 0
            assert running.gateway.view().models[0].num_in_flight == 0
            assert [record.outcome for record in running.records] == [outcome]

    run(work())


def test_a_call_that_must_be_translated_is_not_counted() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well]}, policy=None) as running:
            with pytest.raises(AssertionError):
                await running.ask("/v1/messages")
            return running.gateway.num_open, running.records

    assert run(work()) == (0, [])


def test_a_stream_that_was_begun_is_open_until_its_end() -> None:
    async def work() -> None:
        behaviors: Any = {"weak": [well], "strong": [well]}
        async with gateway_over(behaviors, policy=ScriptedPolicy()) as running:
            reply = await running.ask(model="auto", stream=True)
            assert running.gateway.num_open == 1
            await _read(reply)
            assert running.gateway.num_open == 0

    run(work())
