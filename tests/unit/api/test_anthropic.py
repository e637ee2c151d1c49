"""Requests in Anthropic's dialect: what conversations become, and what is refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from moestro.api.anthropic import (
    CountRequest,
    MessagesRequest,
    read_conversation,
    read_messages,
)
from moestro.api.chat import ChatRequest, Constraint, Image, Message, Tool, ToolCall, ToolChoice
from moestro.errors import ConfigError

IMAGE: dict[str, Any] = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Look out of the window.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def read(**fields: Any) -> ChatRequest:
    body = {"max_tokens": 16, "messages": HELLO} | fields
    return read_messages(MessagesRequest.model_validate(body), "tiny")


def test_a_text_is_a_message_of_the_user() -> None:
    request = read()
    assert request.model == "tiny"
    assert request.messages == (Message(role="user", content="hello"),)
    assert request.options.max_tokens == 16


@pytest.mark.parametrize("content", ["It is ", [{"type": "text", "text": "It is "}]])
def test_an_open_turn_of_the_assistants_is_the_answers_beginning(content: Any) -> None:
    request = read(messages=[*HELLO, {"role": "assistant", "content": content}])
    assert request.continues_final
    assert request.messages[-1] == Message(role="assistant", content="It is ")
    assert not read().continues_final


def test_a_list_of_texts_is_joined_by_lines() -> None:
    texts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = read(system=texts, messages=[{"role": "user", "content": texts}])
    assert request.messages == (
        Message(role="system", content="one\ntwo"),
        Message(role="user", content="one\ntwo"),
    )


def test_images_stay_where_they_stand_in_a_turn() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    near = {"type": "image", "source": source, "cache_control": {"type": "ephemeral"}}
    far = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    text = {"type": "text", "text": "or"}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text, near]}
    turn = {"role": "user", "content": [result, near, text, far]}
    shown, said = read(messages=[turn]).messages
    image = Image(url="data:image/png;base64,AAAA")
    assert shown == Message(role="tool", content=("or", image), tool_call_id="t")
    assert said == Message(role="user", content=(image, "or", Image(url="http://x/y.png")))


def test_a_whole_round_of_tools_becomes_turns_of_their_own() -> None:
    request = read(
        tools=[WEATHER],
        messages=[
            *HELLO,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I should look.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "secret"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bonn"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "here:"},
                    {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                    {"type": "tool_result", "tool_use_id": "t2"},
                    {"type": "text", "text": "so?"},
                ],
            },
        ],
    )
    assert request.messages[1:] == (
        Message(
            role="assistant",
            content="Let me see.",
            reasoning="I should look.",
            tool_calls=(ToolCall(id="t1", name="weather", arguments='{"city":"Bonn"}'),),
        ),
        Message(role="user", content="here:"),
        Message(role="tool", content="rain", tool_call_id="t1"),
        Message(role="tool", content="", tool_call_id="t2"),
        Message(role="user", content="so?"),
    )
    assert request.tools == (
        Tool(
            name="weather",
            description="Look out of the window.",
            parameters=WEATHER["input_schema"],
        ),
    )


def test_a_turn_of_calls_alone_has_no_content() -> None:
    use = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    request = read(messages=[*HELLO, {"role": "assistant", "content": [use]}, *HELLO])
    assert [message.content for message in request.messages] == ["hello", None, "hello"]


def test_every_wish_as_to_the_answer_arrives() -> None:
    request = read(
        stop_sequences=["END"],
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        experts=2.5,
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
    )
    options, sampling = request.options, request.options.sampling
    assert options.stops == ("END",)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert options.experts == 2.5
    assert options.constraint == Constraint(kind="json_schema", source='{"type":"object"}')
    assert request.template_variables == {"thinking": True, "enable_thinking": True}


def test_null_is_as_if_absent() -> None:
    nothing = dict.fromkeys(
        ("system", "tools", "tool_choice", "thinking", "stop_sequences", "temperature", "top_k")
    )
    assert read(**nothing) == read()


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ({"type": "auto"}, ToolChoice()),
        ({"type": "none"}, ToolChoice(mode="none")),
        ({"type": "any"}, ToolChoice(mode="required")),
        ({"type": "tool", "name": "weather"}, ToolChoice(mode="named", name="weather")),
    ],
)
def test_tool_choices_have_our_words(asked: dict[str, str], choice: ToolChoice) -> None:
    assert read(tools=[WEATHER], tool_choice=asked).tool_choice == choice


def test_calls_can_be_kept_to_one_at_a_time() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert not read(tools=[WEATHER], tool_choice=choice).has_parallel_tool_calls
    assert read(tools=[WEATHER]).has_parallel_tool_calls


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web"}]}, r"tools\[0\].*web_search"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "names 'x'"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "names 'None'"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": []}]},
            "end with an assistant's turn with nothing in it: only text can be continued",
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "text", "text": "I"},
                            {"type": "tool_use", "id": "x", "name": "y", "input": {}},
                        ],
                    },
                ]
            },
            "assistant's turn with a block of tool_use: only text can be continued",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
            "thinking block stands in a turn of user",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_result", "tool_use_id": "x"}],
                    },
                    *HELLO,
                ]
            },
            "tool_result block stands in a turn of assistant",
        ),
        ({"messages": [{"role": "system", "content": [IMAGE]}, *HELLO]}, "image block stands in"),
        ({"messages": [{"role": "assistant", "content": [IMAGE]}, *HELLO]}, "image block stands"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}],
                    }
                ]
            },
            "source is a file, but this server keeps none",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"max_tokens": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"temperature": float("nan")},
        {"temperature": "0.5"},
        {"top_p": 0},
        {"stop_sequences": [""]},
        {"experts": "many"},
        {"experts": -1},
    ],
)
def test_wrong_types_and_ranges_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(**fields)


def test_counting_needs_no_length() -> None:
    body = CountRequest.model_validate({"messages": HELLO, "system": "be brief"})
    assert [each.role for each in read_conversation(body, "tiny").messages] == ["system", "user"]
