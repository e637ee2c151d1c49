"""Answers in Anthropic's dialect: blocks, reasons and usage, whole or in events that agree."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.api.anthropic_answers import MessageAnswer, error_body
from moestro.api.chunks import Chunk, Finish, Started, ToolCallDelta, Usage

STARTED = Started(model="tiny", prompt_tokens=9, cached_tokens=4)


def test_thoughts_text_and_calls_are_blocks_one_after_the_other() -> None:
    answer = MessageAnswer("msg_1", STARTED)
    call = ToolCallDelta(index=0, id="t1", name="weather")
    events = answer.start()
    for chunk in (
        Chunk(reasoning="Hm"),
        Chunk(text="Let "),
        Chunk(text="me"),
        Chunk(tool_calls=(call,)),
        Chunk(tool_calls=(ToolCallDelta(index=0, arguments='{"city":'),)),
        Chunk(tool_calls=(ToolCallDelta(index=0, arguments='"Bonn"}'),)),
        Chunk(finish="tool_calls"),
        Chunk(usage=Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4)),
    ):
        events += answer.push(chunk)
    events += answer.end()
    assert [event["type"] for event in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "content_block_start", "content_block_delta"),
        *("content_block_delta", "content_block_stop", "message_delta", "message_stop"),
    ]
    assert [event["index"] for event in events[1:-2]] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert answer.body()["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "text", "text": "Let me"},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bonn"}},
    ]
    assert answer.body()["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("finish", "stop", "reason"),
    [
        ("stop", None, "end_turn"),
        ("stop", "END", "stop_sequence"),
        ("length", None, "max_tokens"),
        ("tool_calls", None, "tool_use"),
    ],
)
def test_reasons_to_stop_have_anthropics_names(
    finish: Finish, stop: str | None, reason: str
) -> None:
    answer = MessageAnswer("msg_1", STARTED)
    answer.push(Chunk(finish=finish, stop=stop))
    delta = answer.end()[-2]["delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": stop}
    assert (answer.body()["stop_reason"], answer.body()["stop_sequence"]) == (reason, stop)


def test_tokens_out_of_the_cache_are_no_input() -> None:
    answer = MessageAnswer("msg_1", STARTED)
    assert answer.start()[0]["message"]["usage"]["input_tokens"] == 5
    answer.push(
        Chunk(
            usage=Usage(
                prompt_tokens=9,
                completion_tokens=5,
                cached_tokens=4,
                reasoning_tokens=2,
                mean_experts=2.5,
            )
        )
    )
    assert answer.body()["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2},
        "mean_experts": 2.5,
    }


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": ', {"arguments": '{"a": '}),
        ("[1]", {"arguments": "[1]"}),
        ("[" * 100_000, {"arguments": "[" * 100_000}),
    ],
)
def test_arguments_that_are_no_object_are_kept_as_they_are(
    arguments: str, parsed: dict[str, Any]
) -> None:
    answer = MessageAnswer("msg_1", STARTED)
    answer.push(Chunk(tool_calls=(ToolCallDelta(index=0, id="t1", name="f", arguments=arguments),)))
    assert answer.body()["content"][0]["input"] == parsed


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
    ],
)
def test_errors_have_anthropics_types(status: int, kind: str) -> None:
    assert error_body(status, "why") == {
        "type": "error",
        "error": {"type": kind, "message": "why"},
    }


PIECES = st.lists(
    st.one_of(
        st.builds(Chunk, text=st.text(max_size=3)),
        st.builds(Chunk, reasoning=st.text(max_size=3)),
        st.builds(Chunk, text=st.text(max_size=3), reasoning=st.text(max_size=3)),
    ),
    max_size=12,
)


@given(PIECES)
def test_a_stream_adds_up_to_the_whole(chunks: Sequence[Chunk]) -> None:
    answer = MessageAnswer("msg_1", STARTED)
    events = answer.start()
    for chunk in (*chunks, Chunk(finish="stop")):
        events += answer.push(chunk)
    events += answer.end()
    assert add_up(events) == answer.body()["content"]
    said = "".join(chunk.text for chunk in chunks)
    texts = (block["text"] for block in answer.body()["content"] if block["type"] == "text")
    assert "".join(texts) == said


def add_up(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Do what a client does with a stream; blocks open and close one at a time."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            kind = event["delta"]["type"].removesuffix("_delta")
            blocks[event["index"]][kind] += event["delta"][kind]
        is_open = event["type"] in ("content_block_start", "content_block_delta")
    return blocks
