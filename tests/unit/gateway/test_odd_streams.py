"""Streams that are odd but real: nothing comes twice, and half an answer is never taken for whole.

Next: test_failover.py.
"""

import json
from typing import Any

import pytest

from moestro.gateway.events import DONE
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    WORDS,
    Asking,
    Behavior,
    events_of,
    gateway_over,
    read_stream,
    reset,
    well,
    whole_text,
    word,
)

ERROR = b'data: {"error": {"message": "no usage today"}}\n\n'
ODDITIES: dict[str, dict[str, Any]] = {
    "no id": {"id": None},
    "a number for an id": {"id": 5},
    "no time": {"created": None},
    "a time in words": {"created": "2026-11-28"},
    "no model": {"model": None},
    "no kind": {"object": None},
    "usage of another kind": {"usage": [1, 2]},
    "usage in fractions": {"usage": {"prompt_tokens": 5.5}},
}


def odd_stream(changes: dict[str, Any], num: int) -> Behavior:
    """Stream so many events in an odd form, then break off."""

    async def behave(asking: Asking) -> None:
        await asking.head(200, "transfer-encoding: chunked", kind="text/event-stream")
        for event in events_of(asking.body)[:num]:
            said = json.loads(event[6:]) | changes
            await asking.chunk(b"data: " + json.dumps(said).encode() + b"\n\n")
        await reset(asking)

    return behave


@pytest.mark.parametrize("oddity", ODDITIES)
def test_what_came_in_an_odd_form_does_not_come_again(oddity: str) -> None:
    async def work() -> tuple[bytes, Any]:
        first = odd_stream(ODDITIES[oddity], 5)
        async with gateway_over({"m": [[first, well]]}) as running:
            return await running.stream(), running

    data, running = run(work())
    assert read_stream(data)[0] == whole_text()
    assert running.records[0].num_failovers == 1


def test_what_cannot_be_read_is_passed_on_but_nobody_goes_on_behind_it() -> None:
    async def strange(asking: Asking) -> None:
        await asking.events([b'data: {"choices": [{"index": 0, "delta": "w0 "}]}\n\n'])
        await reset(asking)

    async def work() -> tuple[bytes, Any]:
        async with gateway_over({"m": [[strange, well]]}) as running:
            return await running.stream(), running

    data, running = run(work())
    assert b'"delta": "w0 "' in data
    assert b"nobody could go on with it" in data
    assert len(running.servers["m"][0].asked) == 1


@pytest.mark.parametrize("ends_well", [False, True])
def test_one_choice_that_ended_does_not_end_the_others(ends_well: bool) -> None:
    async def two_choices(asking: Asking) -> None:
        said = [
            {"index": 0, "delta": {"content": "yes"}, "finish_reason": None},
            {"index": 1, "delta": {"content": "no"}, "finish_reason": None},
            {"index": 0, "delta": {}, "finish_reason": "stop"},
        ]
        base = {"id": "a", "model": "m", "created": 7}
        events = [json.dumps(base | {"choices": [each]}).encode() for each in said]
        await asking.events([b"data: " + event + b"\n\n" for event in events])
        await (asking.end() if ends_well else reset(asking))

    async def work() -> tuple[bytes, Any]:
        async with gateway_over({"m": [two_choices]}) as running:
            return await running.stream(n=2), running

    data, running = run(work())
    assert b"the answer broke off" in data
    assert DONE not in data
    assert running.records[0].outcome == "failed"


@pytest.mark.parametrize("last", [ERROR, b"<html>\n\n", DONE + ERROR])
@pytest.mark.parametrize("is_at_once", [False, True])
def test_what_fails_behind_the_end_changes_no_answer(last: bytes, is_at_once: bool) -> None:
    async def behave(asking: Asking) -> None:
        *said, _ = events_of(asking.body)
        await asking.events([b"".join([*said, last])] if is_at_once else [*said, last])
        await asking.end()

    async def work() -> tuple[bytes, Any]:
        async with gateway_over({"m": [[behave, well]]}) as running:
            return await running.stream(), running

    data, running = run(work())
    text, events = read_stream(data)
    assert text == "".join(map(word, range(WORDS)))
    assert data.endswith(DONE)
    assert "error" not in events[-1]
    assert len(running.servers["m"][0].asked) == 1
    assert (running.records[0].outcome, running.records[0].num_failovers) == ("answered", 0)


ODD_MESSAGES = {
    "a list": b"[]",
    "a number": b"5",
    "a message that is none": b'{"type": "message_start", "message": 5}',
    "usage that is none": b'{"type": "message_start", "message": {"usage": 5}}',
    "a block that is none": b'{"type": "content_block_start", "content_block": "x"}',
    "a delta that is none": b'{"type": "content_block_delta", "delta": "x"}',
}


@pytest.mark.parametrize("oddity", ODD_MESSAGES)
def test_what_cannot_be_translated_is_a_fault_like_any_other(oddity: str) -> None:
    async def behave(asking: Asking) -> None:
        await asking.events([b"data: " + ODD_MESSAGES[oddity] + b"\n\n"])
        await asking.chunk(b'data: {"type": "message_stop"}\n\n')
        await asking.end()

    async def work() -> Any:
        usage = {"include_usage": True}
        async with gateway_over({"m": [behave]}, dialect="anthropic") as running:
            try:
                data = await running.stream(max_tokens=9, stream_options=usage)
            except Exception as error:
                return type(error).__name__, running.records[0]
            return data, running.records[0]

    said, record = run(work())
    assert said == "Fault" or b"the answer broke off" in said
    assert record.outcome == "failed"


ODD_WHOLES: dict[str, object] = {
    "blocks that are none": {"type": "message", "content": [5]},
    "a content that is none": {"type": "message", "content": 5},
    "usage that is none": {"type": "message", "content": [], "usage": 5},
    "text that is none": {"type": "message", "content": [{"type": "text", "text": 5}]},
}


@pytest.mark.parametrize("oddity", ODD_WHOLES)
def test_a_message_that_is_none_is_a_fault_like_any_other(oddity: str) -> None:
    async def behave(asking: Asking) -> None:
        await asking.whole(ODD_WHOLES[oddity])

    async def work() -> Any:
        async with gateway_over({"m": [behave]}, dialect="anthropic") as running:
            with pytest.raises(Exception, match="m/0 answered") as raised:
                await running.ask(max_tokens=9)
            return type(raised.value).__name__

    assert run(work()) == "Fault"
