"""Requests to the Responses API: what items become, and what is refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from moestro.api.chat import ChatRequest, Constraint, Image, Message, Tool, ToolCall, ToolChoice
from moestro.api.responses import ResponsesRequest, read_responses
from moestro.errors import ConfigError

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object"},
    "strict": True,
}
ALLOWED = {"type": "allowed_tools", "tools": [{"type": "function", "name": "weather"}]}


def body(**fields: Any) -> ResponsesRequest:
    return ResponsesRequest.model_validate({"input": "hello"} | fields)


def read(**fields: Any) -> ChatRequest:
    return read_responses(body(**fields), "tiny")


def test_a_text_is_a_message_of_the_user() -> None:
    request = read(instructions="be brief")
    assert request.model == "tiny"
    assert request.messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content="hello"),
    )
    assert request.options.max_tokens is None


def test_thoughts_and_calls_join_the_turn_that_they_belong_to() -> None:
    request = read(
        input=[
            {"role": "developer", "content": "be brief"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": None},
            {
                "type": "reasoning",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "I should look."}],
            },
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": "sun"},
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "Two skies."}],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "Mixed."}]},
            {"type": "function_call", "call_id": "c3", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c3", "output": "fog"},
        ]
    )
    calls = [ToolCall(id=f"c{number}", name="weather", arguments="{}") for number in (1, 2, 3)]
    assert request.messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content="hi"),
        Message(role="assistant", reasoning="I should look.", tool_calls=tuple(calls[:2])),
        Message(role="tool", content="rain", tool_call_id="c1"),
        Message(role="tool", content="sun", tool_call_id="c2"),
        Message(
            role="assistant",
            content="Mixed.",
            reasoning="Two skies.",
            tool_calls=tuple(calls[2:]),
        ),
        Message(role="tool", content="fog", tool_call_id="c3"),
    )


def test_a_turn_of_calls_beside_an_empty_text_has_no_content() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
    request = read(input=[{"role": "assistant", "content": []}, call])
    assert [message.content for message in request.messages] == [None]


def test_every_wish_as_to_the_answer_arrives() -> None:
    request = read(
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        reasoning={"effort": "low", "summary": "auto"},
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=3,
        experts="min",
    )
    options = request.options
    assert request.tools == (Tool(name="weather", parameters={"type": "object"}),)
    assert request.tool_choice == ToolChoice(mode="named", name="weather")
    assert not request.has_parallel_tool_calls
    assert options.constraint == Constraint(kind="json_schema", source='{"type":"object"}')
    on = {"thinking": True, "enable_thinking": True}
    assert request.template_variables == on | {"reasoning_effort": "low"}
    assert (options.max_tokens, options.top_logprobs, options.experts) == (7, 3, "min")
    assert (options.sampling.temperature, options.sampling.top_p) == (0.5, 0.9)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_tools_that_are_not_allowed_a_model_is_not_told(mode: Any) -> None:
    other = {"type": "function", "name": "news"}
    request = read(tools=[other, WEATHER], tool_choice=ALLOWED | {"mode": mode})
    assert [tool.name for tool in request.tools] == ["weather"]
    assert request.tool_choice == ToolChoice(mode=mode)


def test_log_probabilities_can_be_asked_for_by_inclusion() -> None:
    assert read(include=["message.output_text.logprobs"]).options.top_logprobs == 0
    assert read(include=["reasoning.encrypted_content"]).options.top_logprobs is None


@pytest.mark.parametrize(
    ("form", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint(kind="json_object")),
    ],
)
def test_simple_formats_need_no_schema(form: dict[str, str], constraint: Constraint | None) -> None:
    assert read(text={"format": form}).options.constraint == constraint


def test_an_effort_reaches_the_template_and_none_is_no_thinking() -> None:
    variables = read(reasoning={"effort": "none"}).template_variables
    off = {"thinking": False, "enable_thinking": False}
    assert variables == off | {"reasoning_effort": "none"}
    assert read(reasoning={"effort": "low"}).template_variables["reasoning_effort"] == "low"


def test_images_stay_where_they_stand_in_a_turn() -> None:
    near = {"type": "input_image", "image_url": "http://x/y.png", "detail": "low"}
    far = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    text = {"type": "input_text", "text": "or"}
    output = {"type": "function_call_output", "call_id": "c", "output": [text, far]}
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    turn = {"role": "user", "content": [near, text, far]}
    said, _, shown = read(input=[turn, call, output]).messages
    image = Image(url="data:image/png;base64,AAAA")
    assert said.content == (Image(url="http://x/y.png", detail="low"), "or", image)
    assert shown == Message(role="tool", content=("or", image), tool_call_id="c")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is given.*keeps nothing"),
        ({"conversation": "conv_1"}, "conversation is given"),
        ({"prompt": {"id": "p"}}, "prompt is given"),
        ({"background": True}, "background is given"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\] is of type web_search"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\] has no name"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "has no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "is of type web_search"),
        (
            {"tools": [WEATHER], "tool_choice": ALLOWED | {"tools": [{"type": "mcp"}]}},
            "is of type mcp",
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "names 'x'"),
        ({"text": {"format": {"type": "json_schema"}}}, "has no schema"),
        ({"input": [{"role": "system", "content": "x"}]}, "nothing to answer"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input_image has no image_url.*keeps no files",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": []},
        {"input": 5},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": 5}]}]},
        {"max_output_tokens": 0},
        {"temperature": float("inf")},
        {"top_logprobs": 21},
    ],
)
def test_wrong_types_and_ranges_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        body(**fields)
