"""Anthropic's upstreams: asked in OpenAI's words, and passed through where both speak theirs.

The upstream's events are written here as its documents have them. Next: upstreams.py.
"""

import asyncio
import json
from typing import Any

import pytest

from moestro.api.relay import Call
from moestro.gateway.anthropic import write_messages
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    Asking,
    Behavior,
    breaks,
    gateway_over,
    raw,
    read_stream,
    replies,
    reset,
    whole_text,
    word,
)

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "hello"},
        {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 4},
}

NO_UTF8 = replies(200, json.dumps(MESSAGE).replace("hello", "\xff").encode("latin1"))


def events(num: int = 12, begin: int = 0) -> list[bytes]:
    said: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "usage": {"input_tokens": 5},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
    ]
    said += [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": word(number)},
        }
        for number in range(begin, num)
    ]
    said += [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": num - begin},
        },
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in said]


async def well(asking: Asking) -> None:
    last = asking.body["messages"][-1]
    begun = last["content"] if last["role"] == "assistant" else []
    begin = len("".join(block["text"] for block in begun).split()) if begun else 0
    if not asking.body.get("stream"):
        await asking.whole(MESSAGE)
        return
    await asking.events(events(begin=begin))
    await asking.end()


def breaking(after: int) -> Behavior:
    async def behave(asking: Asking) -> None:
        await asking.events(events()[:after])
        await asyncio.sleep(0.05)
        asking.reset()

    return behave


async def _stream(*behaviors: Behavior, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    async with gateway_over({"m": [list(behaviors)]}, dialect="anthropic") as running:
        return await running.stream(path, **fields), running


def test_a_whole_answer_is_openais() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well]}, dialect="anthropic") as running:
            return json.loads((await running.ask()).body), running

    said, running = run(work())
    message = said["choices"][0]["message"]
    assert message["content"] == "hello"
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"a":1}'}
    assert said["choices"][0]["finish_reason"] == "tool_calls"
    assert said["usage"]["total_tokens"] == 9
    asking = running.servers["m"][0].asked[0]
    assert asking.path == "/v1/messages"
    assert asking.headers["anthropic-version"]
    assert asking.body == {
        "model": "m",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "say"}]}],
    }


def test_its_key_goes_where_it_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "secret")

    async def work() -> Any:
        settings = {"dialect": "anthropic", "key": "env:THEIR_KEY"}
        async with gateway_over({"m": [well]}, **settings) as running:
            await running.ask()
            return running.servers["m"][0].asked[0].headers

    headers = run(work())
    assert headers["x-api-key"] == "secret"
    assert "authorization" not in headers


def test_a_stream_is_openais_with_its_usage() -> None:
    data, running = run(_stream(well, stream_options={"include_usage": True}))
    text, said = read_stream(data)
    assert text == whole_text()
    assert data.endswith(b"data: [DONE]\n\n")
    assert said[-1]["usage"]["completion_tokens"] == 12
    assert said[0]["choices"][0]["delta"]["role"] == "assistant"
    assert running.records[0].prompt_tokens == 5


def test_a_stream_that_breaks_is_gone_on_with_behind_its_text() -> None:
    data, running = run(_stream(breaking(7), well))
    assert read_stream(data)[0] == whole_text()
    last = running.servers["m"][0].asked[1].body["messages"][-1]
    assert last == {"role": "assistant", "content": [{"type": "text", "text": whole_text(4)}]}
    assert "continue_final_message" not in running.servers["m"][0].asked[1].body


def test_tools_and_thoughts_are_streamed() -> None:
    said = [
        {"type": "message_start", "message": {"id": "a", "model": "m"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "thinking_delta", "thinking": "hm"},
        },
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t", "name": "look"},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": "{}"},
        },
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        {"type": "message_stop"},
    ]

    async def behave(asking: Asking) -> None:
        await asking.events([b"data: " + json.dumps(each).encode() + b"\n\n" for each in said])
        await asking.end()

    data, _ = run(_stream(behave))
    deltas = [event["choices"][0]["delta"] for event in read_stream(data)[1]]
    assert deltas[1] == {"reasoning_content": "hm"}
    assert deltas[2]["tool_calls"][0]["id"] == "t"
    assert deltas[3]["tool_calls"][0] == {"index": 0, "function": {"arguments": "{}"}}


@pytest.mark.parametrize(
    "fault",
    [
        breaks(3, reset),
        raw(b""),
        replies(200, b"<html>"),
        NO_UTF8,
        replies(529, {"type": "error"}, "retry-after: 0"),
    ],
)
def test_a_fault_is_followed_by_another_try(fault: Behavior) -> None:
    data, _ = run(_stream(fault, well))
    assert read_stream(data)[0] == whole_text()


def test_an_error_in_the_stream_is_seen() -> None:
    async def fail(asking: Asking) -> None:
        error = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'
        await asking.events([*events()[:6], error])
        await asking.end()

    data, running = run(_stream(fail, well))
    assert read_stream(data)[0] == whole_text()
    assert running.records[0].num_failovers == 1


def test_both_speaking_it_pass_bytes() -> None:
    fields = {"path": "/v1/messages", "max_tokens": 9}
    data, running = run(_stream(well, **fields))
    assert data == b"".join(events())
    assert (running.records[0].prompt_tokens, running.records[0].completion_tokens) == (5, 12)


@pytest.mark.parametrize("fault", [raw(b""), NO_UTF8])
def test_a_whole_message_comes_from_who_can_say_it(fault: Behavior) -> None:
    async def work() -> Any:
        async with gateway_over({"m": [[fault, well]]}, dialect="anthropic") as running:
            return json.loads((await running.ask("/v1/messages")).body), running

    said, running = run(work())
    assert said == MESSAGE
    assert running.records[0].prompt_tokens == 5


def read_blocks(data: bytes) -> list[str]:
    """Check that a stream is one that Anthropic's client can read; return its blocks' texts."""
    said = [json.loads(each.partition(b"data: ")[2]) for each in data.split(b"\n\n") if each]
    assert [said[0]["type"], said[-1]["type"]] == ["message_start", "message_stop"]
    assert sum(each["type"] == "message_start" for each in said) == 1
    blocks: list[str] = []
    open_at = None
    for each in said:
        match each["type"]:
            case "content_block_start":
                assert open_at is None
                assert each["index"] == len(blocks)
                open_at = each["index"]
                blocks.append("")
            case "content_block_delta":
                assert each["index"] == open_at
                blocks[-1] += each["delta"].get("text", "")
            case "content_block_stop":
                assert each["index"] == open_at
                open_at = None
    assert open_at is None
    return blocks


@pytest.mark.parametrize("after", range(1, len(events())))
def test_a_raw_stream_that_breaks_anywhere_is_the_same_as_an_unbroken_one(after: int) -> None:
    data, running = run(_stream(breaking(after), well, path="/v1/messages"))
    assert read_blocks(data)[0] == whole_text()
    record = running.records[0]
    assert (record.outcome, record.completion_tokens) == ("answered", 12)
    if 4 <= after <= 14:
        turn = running.servers["m"][0].asked[1].body["messages"][-1]
        # Anthropic refuses a begun turn that ends in a space.
        text = whole_text(after - 3).rstrip()
        assert turn == {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_a_raw_stream_may_break_twice() -> None:
    async def go_on_and_break(asking: Asking) -> None:
        await asking.events(events(begin=3)[:6])
        await asyncio.sleep(0.05)
        asking.reset()

    data, running = run(_stream(breaking(6), go_on_and_break, well, path="/v1/messages"))
    assert read_blocks(data) == [whole_text()]
    assert running.records[0].num_failovers == 2


def test_spaces_told_already_are_not_told_again() -> None:
    async def behave(asking: Asking) -> None:
        said = events(num=6, begin=3)
        said[3] = said[3].replace(b'"w3 "', b'" w3 "')
        await asking.events(said)
        await asking.end()

    data, _ = run(_stream(breaking(6), behave, path="/v1/messages"))
    assert read_blocks(data) == [whole_text(6)]


def test_another_kind_of_block_closes_the_text_that_is_open() -> None:
    async def call(asking: Asking) -> None:
        said = events(num=0)
        block = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
        start = {"type": "content_block_start", "index": 0, "content_block": block}
        said[1] = b"data: " + json.dumps(start).encode() + b"\n\n"
        await asking.events(said)
        await asking.end()

    data, _ = run(_stream(breaking(6), call, path="/v1/messages"))
    assert read_blocks(data) == [whole_text(3), ""]
    assert b'"name":"look"' in data


def test_a_begun_turn_of_the_clients_is_gone_on_with() -> None:
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "w0 w1"}]
    _, running = run(_stream(breaking(6), well, path="/v1/messages", messages=turns, max_tokens=20))
    body = running.servers["m"][0].asked[1].body
    assert [block["text"] for block in body["messages"][-1]["content"]] == ["w0 w1", "w0 w1 w2"]
    assert body["max_tokens"] == 17


def test_a_raw_stream_with_all_its_tokens_ends() -> None:
    data, running = run(_stream(breaking(6), well, path="/v1/messages", max_tokens=3))
    assert read_blocks(data) == [whole_text(3)]
    assert b'"stop_reason":"max_tokens"' in data
    assert len(running.servers["m"][0].asked) == 1


@pytest.mark.parametrize(
    "fields", [{"thinking": {"type": "enabled"}}, {"output_config": {"format": {}}}]
)
def test_what_cannot_be_gone_on_with_says_so(fields: dict[str, Any]) -> None:
    data, running = run(_stream(breaking(6), well, path="/v1/messages", **fields))
    last = data.split(b"\n\n")[-2]
    assert last.startswith(b"event: error\ndata: ")
    assert running.records[0].outcome == "failed"


def test_openais_backends_leave_messages_to_the_routes() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well]}) as running:
            bodies = (b'{"model": "m", "messages": [{}]}', b"{")
            calls = [Call(path="/v1/messages", body=body, request_id="r") for body in bodies]
            return [await running.gateway.relay(call) for call in calls]

    assert run(work()) == [None, None]


def test_a_chat_with_all_its_parts_is_written_in_its_words() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    call = {"id": "t", "function": {"name": "look", "arguments": '{"a": 1}'}}
    said = {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}, image]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "t", "content": "1"},
            {"role": "tool", "tool_call_id": "u", "content": "2"},
        ],
        "max_completion_tokens": 7,
        "stop": "x",
        "temperature": 0,
        "user": "somebody",
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    }
    body = write_messages(said, "claude")
    assert body["system"] == "be brief"
    assert body["max_tokens"] == 7
    assert body["stop_sequences"] == ["x"]
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][0]["content"][1]["source"]["media_type"] == "image/png"
    assert body["messages"][1]["content"][0]["input"] == {"a": 1}
    assert [block["tool_use_id"] for block in body["messages"][2]["content"]] == ["t", "u"]
    assert body["tool_choice"] == {
        "type": "tool",
        "name": "look",
        "disable_parallel_tool_use": True,
    }
    assert body["output_config"]["format"]["schema"] == {"type": "object"}
    assert body["metadata"] == {"user_id": "somebody"}
