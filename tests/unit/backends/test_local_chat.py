"""Conversations with a local backend: templates, thoughts, calls of tools."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from moestro.api.chat import Constraint, Image, Message, Tool, ToolChoice
from moestro.api.openai_bodies import ChatBody
from moestro.api.openai_requests import read_chat
from moestro.errors import ConfigError, DataError
from tests.unit.backends.local_parts import ask, build, chat, chunks, completion, text_of, tokenizer

TOOL = Tool(name="area", description="Area", parameters={"type": "object", "properties": {}})
HERMES = "{{ messages[-1].content }}{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
# DeepSeek-V3's own way to tell a turn of calls from one of words.
BY_NONE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' and message['content'] is none -%}
{%- for call in message['tool_calls'] -%}<{{ call['function']['name'] }}>{%- endfor -%}
{%- elif message['role'] == 'assistant' -%}[{{ message['content'] }}]
{%- else -%}{{ message['content'] }}{%- endif -%}
{%- endfor -%}"""
THINKING = "{{ messages[-1].content }}{% if open %}<think>{% endif %}{# </think> #}"


def test_a_model_without_a_template_can_be_talked_to() -> None:
    backend, engine = build("Four.\n\nUser: and then?", ends=False)
    pieces = ask(backend, chat("Two and two?", max_tokens=40))
    prompt = tokenizer().decode(engine.requests[0].prompt)
    assert prompt == "User: Two and two?\n\nAssistant:"
    assert text_of(pieces) == "Four."


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    backend, engine = build("more.", ends=False)
    asked = chat("Two and two?", max_tokens=9)
    begun = Message(role="assistant", content="It is ")
    ask(backend, replace(asked, messages=(*asked.messages, begun), continues_final=True))
    prompt = tokenizer().decode(engine.requests[0].prompt)
    assert prompt == "User: Two and two?\n\nAssistant: It is "


def test_an_image_is_refused_before_a_model_of_text_is_asked() -> None:
    backend, engine = build()
    shown = Message(role="user", content=("What is it?", Image(url="http://x/y.png")))
    with pytest.raises(ConfigError, match="has an image, but this model reads text only"):
        ask(backend, replace(chat("hi"), messages=(shown,)))
    assert not engine.requests


def test_a_prompt_can_end_with_the_last_message() -> None:
    backend, _ = build()
    asked = replace(chat("Two and two?"), has_generation_prompt=False)
    ids = asyncio.run(backend.tokenize(asked))
    assert tokenizer().decode(ids) == "User: Two and two?"


def test_thoughts_are_told_apart_and_counted() -> None:
    backend, _ = build("<think>radius</think>area", template=THINKING)
    opened, _ = build("radius</think>area", template=THINKING)
    for pieces in (
        ask(backend, chat()),
        ask(opened, chat(template_variables={"open": True})),
    ):
        assert "".join(chunk.reasoning for chunk in chunks(pieces)) == "radius"
        assert text_of(pieces) == "area"
        usage = chunks(pieces)[-1].usage
        assert usage is not None
        assert 0 < usage.reasoning_tokens < usage.completion_tokens


def test_thoughts_that_no_token_ends_leave_no_room_beside_a_grammar() -> None:
    backend, engine = build('{"a": 1}', template=THINKING)
    constraint = Constraint(kind="json_object")
    pieces = ask(backend, chat(template_variables={"open": True}, constraint=constraint))
    assert text_of(pieces) == '{"a": 1}'
    assert engine.requests[0].grammar is not None
    assert engine.requests[0].grammar.kind == "json_object"


@pytest.mark.parametrize(
    ("wish", "answer", "said"),
    [
        ({"constraint": Constraint(kind="json_object")}, '{"a": 1}', ('{"a": 1}', "")),
        (
            {"tools": (TOOL,), "tool_choice": ToolChoice(mode="named", name="area")},
            '{"name": "area", "arguments": {"r": 2}}',
            ("", '{"r": 2}'),
        ),
    ],
)
def test_a_model_that_thinks_first_follows_the_grammar_behind_its_thoughts(
    wish: dict[str, Any], answer: str, said: tuple[str, str]
) -> None:
    backend, engine = build(f"radius</think>{answer}", template=THINKING, names=["</think>"])
    pieces = ask(backend, chat(template_variables={"open": True}, **wish))
    words = tokenizer("</think>")
    assert [engine.requests[0].grammar_after] == words.encode_trusted("</think>")
    assert "".join(chunk.reasoning for chunk in chunks(pieces)) == "radius"
    deltas = [delta for chunk in chunks(pieces) for delta in chunk.tool_calls]
    assert (text_of(pieces), "".join(delta.arguments for delta in deltas)) == said


def test_a_model_that_does_not_think_follows_the_grammar_at_once() -> None:
    backend, engine = build('{"a": 1}', template=THINKING, names=["</think>"])
    ask(backend, chat(constraint=Constraint(kind="json_object")))
    ask(backend, completion("<think>", constraint=Constraint(kind="json_object")))
    assert [request.grammar_after for request in engine.requests] == [None, None]


def test_a_call_of_a_tool_is_read_out_of_the_text() -> None:
    written = 'Well.<tool_call>{"name": "area", "arguments": {"r": 2}}</tool_call>'
    backend, engine = build(written, template=HERMES)
    pieces = chunks(ask(backend, chat(tools=(TOOL,))))
    assert "area" in tokenizer().decode(engine.requests[0].prompt)
    assert "".join(chunk.text for chunk in pieces) == "Well."
    deltas = [delta for chunk in pieces for delta in chunk.tool_calls]
    assert [delta.name for delta in deltas if delta.name] == ["area"]
    assert "".join(delta.arguments for delta in deltas) == '{"r": 2}'
    assert [chunk.finish for chunk in pieces if chunk.finish] == ["tool_calls"]


def test_an_answer_that_may_have_one_call_ends_where_a_second_begins() -> None:
    call = '<tool_call>{"name": "area", "arguments": {"r": 2}}</tool_call>'
    backend, engine = build(f"{call}\n{call}radius radius radius", template=HERMES)
    pieces = chunks(ask(backend, chat(tools=(TOOL,), has_parallel_tool_calls=False)))
    deltas = [delta for chunk in pieces for delta in chunk.tool_calls]
    assert [delta.name for delta in deltas if delta.name] == ["area"]
    assert "".join(delta.arguments for delta in deltas) == '{"r": 2}'
    assert [chunk.finish for chunk in pieces if chunk.finish] == ["tool_calls"]
    assert engine.was_cut == [(engine.requests[0].id, 0)]
    both = chunks(ask(backend, chat(tools=(TOOL,))))
    assert sum(bool(delta.name) for chunk in both for delta in chunk.tool_calls) == 2


@pytest.mark.parametrize(("content", "turn"), [(None, "<area>"), ("", "<area>"), ("a", "[a]")])
def test_calls_of_an_earlier_turn_reach_a_template_that_tells_them_by_null(
    content: str | None, turn: str
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "area", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "how large?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
    ]
    backend, engine = build(template=BY_NONE)
    ask(backend, read_chat(ChatBody.model_validate({"messages": turns}), "tiny"))
    assert tokenizer().decode(engine.requests[0].prompt) == f"how large?{turn}2"


@pytest.mark.parametrize(
    ("template", "num_warnings"),
    [(HERMES, 0), ("{{ tools }}", 1), ("{{ messages }}", 0), (None, 0)],
)
def test_a_format_of_calls_that_is_not_known_is_said_once_at_start(
    template: str | None, num_warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    backend, _ = build(template=template)
    asyncio.run(backend.start())
    said = [line for line in caplog.messages if "not in a format that is known" in line]
    assert len(said) == num_warnings


def test_tools_that_may_not_be_used_are_not_told_of() -> None:
    written = '<tool_call>{"name": "area", "arguments": {}}</tool_call>'
    backend, engine = build(written, template=HERMES)
    pieces = ask(backend, chat(tools=(TOOL,), tool_choice=ToolChoice(mode="none")))
    assert tokenizer().decode(engine.requests[0].prompt) == "area"
    assert text_of(pieces) == written


@pytest.mark.parametrize(
    "choice", [ToolChoice(mode="required"), ToolChoice(mode="named", name="area")]
)
def test_a_forced_call_follows_a_schema(choice: ToolChoice) -> None:
    backend, engine = build('{"name": "area", "arguments": {"r": 2}}')
    request = chat(tools=(TOOL,), tool_choice=choice, has_parallel_tool_calls=False)
    with pytest.raises(DataError, match="no chat template that could tell it of tools"):
        ask(backend, request)
    backend, engine = build('{"name": "area", "arguments": {"r": 2}}', template=HERMES)
    pieces = chunks(ask(backend, request))
    assert engine.requests[0].grammar is not None
    assert '"area"' in engine.requests[0].grammar.source
    deltas = [delta for chunk in pieces for delta in chunk.tool_calls]
    assert "".join(delta.arguments for delta in deltas) == '{"r": 2}'
    assert [chunk.finish for chunk in pieces if chunk.finish] == ["tool_calls"]
    assert "".join(chunk.text for chunk in pieces) == ""
