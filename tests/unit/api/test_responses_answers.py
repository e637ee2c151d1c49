"""Answers of the Responses API: items, usage and failures, whole or in events that agree."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.api.chunks import Alternative, Chunk, Started, Token, ToolCallDelta, Usage
from moestro.api.responses import ResponsesRequest
from moestro.api.responses_answers import Identity, ResponseAnswer

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object"},
    "strict": True,
}
IDENTITY = Identity(name="1", created=1_700_000_000)
STARTED = Started(model="tiny", prompt_tokens=9)
USAGE = Usage(
    prompt_tokens=9, completion_tokens=5, cached_tokens=4, reasoning_tokens=2, mean_experts=2.5
)


def answer(**fields: Any) -> ResponseAnswer:
    return ResponseAnswer(
        IDENTITY, ResponsesRequest.model_validate({"input": "hello"} | fields), STARTED
    )


def token(text: str, logprob: float | None = -0.5) -> Token:
    alternative = Alternative(token_id=1, text="x", data=b"x", logprob=-2.0)
    return Token(
        token_id=0, text=text, data=text.encode(), logprob=logprob, alternatives=(alternative,)
    )


def tell(narrator: ResponseAnswer, *chunks: Chunk) -> list[dict[str, Any]]:
    events = narrator.start()
    for chunk in chunks:
        events += narrator.push(chunk)
    return [*events, *narrator.end()]


def test_storing_is_tolerated_and_denied() -> None:
    narrator = answer(store=True)
    tell(narrator, Chunk(finish="stop"))
    assert narrator.body()["store"] is False


def test_thoughts_text_and_calls_are_items_one_after_the_other() -> None:
    narrator = answer(tools=[WEATHER])
    call = ToolCallDelta(index=0, id="c1", name="weather")
    other = ToolCallDelta(index=1, id="c2", name="weather", arguments="{}")
    events = tell(
        narrator,
        Chunk(reasoning="Hm"),
        Chunk(text="Let "),
        Chunk(text="me"),
        Chunk(tool_calls=(call, ToolCallDelta(index=0, arguments="{}"))),
        Chunk(tool_calls=(other,)),
        Chunk(finish="tool_calls"),
        Chunk(usage=USAGE),
    )
    part = ("content_part.added", "output_item.added")
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *(*reversed(part), "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *(*reversed(part), "output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    assert {item["status"] for item in output} == {"completed"}
    assert [item["call_id"] for item in output[2:]] == ["c1", "c2"]
    assert len({item["id"] for item in output}) == 4
    assert events[-1]["response"]["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
        "mean_experts": 2.5,
    }


def test_an_answer_cut_by_its_length_is_incomplete() -> None:
    narrator = answer()
    events = tell(narrator, Chunk(text="Once"), Chunk(finish="length"))
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limit_exceeded"), (503, "server_error")])
def test_a_failure_keeps_what_was_said(status: int, code: str) -> None:
    narrator = answer()
    events = [*narrator.start(), *narrator.push(Chunk(text="Once")), *narrator.fail(status, "oh")]
    response = events[-1]["response"]
    assert events[-1]["type"] == "response.failed"
    assert response["status"] == "failed"
    assert response["error"] == {"code": code, "message": "oh"}
    assert response["output"][0]["content"][0]["text"] == "Once"
    assert response["output"][0]["status"] == "incomplete"
    assert events[-2]["type"] == "response.output_item.done"


def test_a_token_without_text_tells_its_log_probability_with_the_next() -> None:
    narrator = answer(top_logprobs=1)
    events = tell(
        narrator,
        Chunk(reasoning="Hm", tokens=(token("Hm"),)),
        Chunk(tokens=(token("a"),)),
        Chunk(text="ab", tokens=(token("b"),)),
        Chunk(finish="stop"),
    )
    delta = next(each for each in events if each["type"] == "response.output_text.delta")
    assert [entry["token"] for entry in delta["logprobs"]] == ["a", "b"]
    assert delta["logprobs"][0]["top_logprobs"][0]["token"] == "x"
    content = narrator.body()["output"][1]["content"][0]
    assert content["logprobs"] == delta["logprobs"]


def test_log_probabilities_come_only_where_asked_for() -> None:
    narrator = answer()
    tell(narrator, Chunk(text="a", tokens=(token("a", None),)), Chunk(finish="stop"))
    assert narrator.body()["output"][0]["content"][0]["logprobs"] == []


def test_the_request_is_repeated() -> None:
    narrator = answer(
        instructions="be brief",
        metadata={"team": "red"},
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        text={"format": {"type": "json_schema", "name": "x", "schema": {"a": 1}}},
        temperature=0,
    )
    response = narrator.body()
    assert response["metadata"] == {"team": "red"}
    assert response["instructions"] == "be brief"
    assert response["temperature"] == 0
    assert response["tools"] == [WEATHER | {"description": None}]
    assert response["tool_choice"] == {"type": "function", "name": "weather"}
    assert response["text"]["format"] == {"type": "json_schema", "name": "x", "schema": {"a": 1}}


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
    narrator = answer()
    events = tell(narrator, *chunks, Chunk(finish="stop"))
    assert add_up(events) == narrator.body()["output"] == events[-1]["response"]["output"]
    texts = (each["delta"] for each in events if each["type"] == "response.output_text.delta")
    assert "".join(texts) == "".join(chunk.text for chunk in chunks)


def add_up(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect what items said of themselves when done, and check it against their pieces."""
    items: list[dict[str, Any]] = []
    said: list[str] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            said = []
        elif kind.endswith("text.delta"):
            said.append(event["delta"])
        elif kind == "output_item.done":
            assert event["item"]["content"][0]["text"] == "".join(said)
            items.append(event["item"])
    return items
