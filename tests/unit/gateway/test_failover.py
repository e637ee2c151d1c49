"""A stream whose backend breaks is the stream that would have come unbroken.

The faults are those of LiteLLM's issue 40404 and more, by real servers. Next: test_faults.py.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from moestro.gateway.events import DONE, write_event
from tests.unit.gateway.upstreams import (
    QUICK,
    Asking,
    Behavior,
    breaks,
    end_early,
    endless,
    events_of,
    gateway_over,
    question,
    read_stream,
    reset,
    stall,
    well,
    whole_text,
)

PATHS = ("/v1/chat/completions", "/v1/completions")
# Enough for the backends' loopback connections and the timeouts above, under a load of others.
LIMIT_S = 30


def run(work: Any) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(LIMIT_S):
            return await work

    return asyncio.run(limited())


async def half_event(asking: Asking) -> None:
    await asking.chunk(b'data: {"id": "x", "choices": [{"index": 0, "delta": {"cont')
    await asking.end()


async def half_event_and_border(asking: Asking) -> None:
    await asking.chunk(b'data: {"id": "x", "choices": [{"index": 0, "delta": {"cont\n\n')


async def error_event(asking: Asking) -> None:
    await asking.chunk(b'data: {"error": {"message": "out of memory"}}\n\n')
    await asking.end()


async def garbage(asking: Asking) -> None:
    await asking.chunk(b"<html>502 Bad Gateway</html>\n\n")
    await asking.end()


async def no_chunk(asking: Asking) -> None:
    await asking.send(b"this is no chunk\r\n")


SHAPES: dict[str, Callable[[Asking], Awaitable[None]]] = {
    "reset": reset,
    "early end": end_early,
    "stall": stall,
    "half an event": half_event,
    "half an event with a border": half_event_and_border,
    "error event": error_event,
    "garbage": garbage,
    "broken chunk": no_chunk,
}


async def _relay(
    first: Behavior, path: str, second: Behavior = well, **fields: Any
) -> tuple[bytes, Any]:
    async with gateway_over({"m": [[first, second]]}) as running:
        return await running.stream(path, **fields), running


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("shape", "after"),
    # A stall takes as long as the gateway is patient.
    [(shape, after) for shape in SHAPES for after in ((5,) if shape == "stall" else (1, 5, 12))],
)
def test_a_broken_stream_goes_on_as_the_unbroken_one(shape: str, after: int, path: str) -> None:
    data, running = run(_relay(breaks(after, SHAPES[shape]), path))
    unbroken, _ = run(_relay(well, path))
    text, events = read_stream(data)
    assert text == whole_text()
    assert data.endswith(DONE)
    assert data.count(b"[DONE]") == 1
    assert len(events) == len(read_stream(unbroken)[1])
    assert {(event["id"], event["created"], event["model"]) for event in events} == {
        ("id-broken", 7, "m")
    }
    assert running.records[0].num_failovers == 1
    assert running.records[0].outcome == "answered"


@pytest.mark.parametrize("path", PATHS)
def test_a_healthy_stream_passes_byte_by_byte(path: str) -> None:
    data, running = run(_relay(well, path))
    assert data == b"".join(events_of(question(path), "real"))
    assert running.records[0].completion_tokens == 12
    assert running.records[0].is_estimated


def test_usage_at_the_end_is_that_of_the_whole() -> None:
    fields = {"stream_options": {"include_usage": True}}
    data, running = run(_relay(breaks(5, reset), PATHS[0], **fields))
    usage = read_stream(data)[1][-1]["usage"]
    assert usage == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    record = running.records[0]
    assert (record.prompt_tokens, record.completion_tokens) == (5, 12)
    assert not record.is_estimated


def test_a_stream_of_two_parts_costs_what_both_do() -> None:
    fields = {"stream_options": {"include_usage": True}}
    _, running = run(_relay(breaks(5, reset), PATHS[0], **fields))
    # In millionths: 5 tokens read and 4 written, then 9 read and 8 written.
    assert running.records[0].cost_usd * 1e6 == pytest.approx((5 + 4 * 2) + (9 + 8 * 2))


def test_a_part_that_says_nothing_costs_nothing() -> None:
    fields = {"stream_options": {"include_usage": True}}
    _, running = run(_relay(breaks(1, reset), PATHS[0], **fields))
    assert running.records[0].num_failovers == 1
    assert running.records[0].cost_usd * 1e6 == pytest.approx(5 + 12 * 2)


def test_the_rest_is_asked_for_only() -> None:
    data, running = run(_relay(breaks(5, reset), PATHS[0], max_tokens=9))
    assert read_stream(data)[0] == whole_text(9)
    assert running.servers["m"][0].asked[1].body["max_tokens"] == 5


def test_nobody_is_asked_where_all_tokens_have_come() -> None:
    data, running = run(_relay(breaks(5, reset), PATHS[0], max_tokens=4))
    text, events = read_stream(data)
    assert text == whole_text(4)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert len(running.servers["m"][0].asked) == 1


def test_a_stream_that_breaks_again_and_again_goes_on() -> None:
    async def work() -> tuple[bytes, Any]:
        rows = [[breaks(4, reset), breaks(4, end_early), well]]
        async with gateway_over({"m": rows}) as running:
            return await running.stream(), running

    data, running = run(work())
    assert read_stream(data)[0] == whole_text()
    assert running.records[0].num_failovers == 2


@pytest.mark.parametrize("continuations", [0, 1])
def test_whether_a_stream_goes_on_does_not_depend_on_retries(continuations: int) -> None:
    async def work() -> Any:
        config = replace(QUICK, retries=0, continuations=continuations)
        async with gateway_over({"m": [[breaks(4, reset), well]]}, config) as running:
            return await running.stream(), running

    data, running = run(work())
    assert (read_stream(data)[0] == whole_text()) == bool(continuations)
    assert running.records[0].num_failovers == continuations


def test_an_answer_that_was_whole_only_lacks_its_end() -> None:
    data, running = run(_relay(breaks(14, reset), PATHS[0]))
    assert read_stream(data)[0] == whole_text()
    assert data.endswith(DONE)
    assert running.records[0].num_failovers == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"store": True},
        {"prompt": "a", "logprobs": 0},
        {"prompt": "a", "echo": True},
        {"echo": True},
        {"truncate_prompt_tokens": 9},
        {"prompt": ["a", "b"]},
    ],
)
def test_what_cannot_be_continued_ends_with_an_error(fields: dict[str, Any]) -> None:
    path = PATHS["prompt" in fields]
    data, running = run(_relay(breaks(5, reset), path, **fields))
    text, events = read_stream(data)
    assert text == whole_text(4 + ("prompt" in fields))
    assert events[-1]["error"]["code"] == "unavailable"
    assert DONE not in data
    assert running.records[0].outcome == "failed"


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 1, "delta": {"content": "x"}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0}]}},
        {"index": 0, "delta": {"reasoning_content": "hm"}},
        {"index": 0, "delta": {"content": ["parts"]}},
    ],
)
def test_what_is_no_plain_text_is_not_continued(choice: dict[str, Any]) -> None:
    async def behave(asking: Asking) -> None:
        await asking.events([write_event({"id": "a", "choices": [choice]})])
        await asyncio.sleep(0.05)
        asking.reset()

    data, running = run(_relay(behave, PATHS[0]))
    assert b'"error"' in data
    assert len(running.servers["m"][0].asked) == 1


def test_nobody_left_is_an_error_event() -> None:
    data, running = run(_relay(breaks(5, reset), PATHS[0], second=reset))
    text, events = read_stream(data)
    assert text == whole_text(4)
    assert "nobody could go on" in events[-1]["error"]["message"]
    assert running.records[0].status == 200


def test_another_backend_of_the_model_is_asked_before_the_broken_one() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [breaks(4, reset), breaks(4, reset), well]}) as running:
            texts = [read_stream(await running.stream())[0] for _ in range(6)]
            return texts

    assert run(work()) == [whole_text()] * 6


def test_a_backend_that_cannot_continue_is_not_asked_to() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [[breaks(4, reset), well]]}, can_continue=False) as running:
            return await running.stream(), running

    data, running = run(work())
    assert "error" in read_stream(data)[1][-1]
    assert len(running.servers["m"][0].asked) == 1


def test_a_client_that_leaves_ends_the_work() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [endless]}, replace(QUICK, retries=0)) as running:
            reply = await running.ask(stream=True)
            await anext(reply.body)
            await reply.body.aclose()
            await running.servers["m"][0].asked[0].is_gone.wait()
            return running

    running = run(work())
    assert running.records[0].outcome == "left"
    assert running.gateway.view().models[0].num_in_flight == 0
