"""Calls that a request insists on: only calls of the right shape can be written, all are read."""

import json
import random
from itertools import count
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import DataError
from moestro.text.calls import CallArguments, CallStart, Text, ToolEvent
from moestro.text.forced import ForcedStream, forced_schema, parse_forced
from moestro.text.grammar import GrammarFactory, GrammarSpec
from moestro.text.tokenizer import Tokenizer
from tests.unit.text.cuts import cut
from tests.unit.text.walk import walk

TREE = {
    "type": "object",
    "$id": "https://example.com/tree",
    "$defs": {"leaf": {"type": "integer", "minimum": 0, "maximum": 99}},
    "properties": {
        "$ref": {"$ref": "#/$defs/leaf"},
        "default": {"$ref": "#/$defs/leaf"},
        "kind": {"const": {"$ref": "#/$defs/leaf"}},
    },
    "required": ["$ref", "default", "kind"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "plant", "parameters": TREE}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "plant"}}
CALL = '{"name": "plant", "arguments": {"$ref": 1, "kind": {}}}'


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_whatever_the_schema_allows_is_read_as_calls(
    tokenizer: Tokenizer, choice: Any, parallel: bool
) -> None:
    schema = json.dumps(forced_schema(TOOLS, choice, parallel=parallel))
    grammar = GrammarFactory(tokenizer).compile(GrammarSpec(kind="json_schema", source=schema))
    own = jsonschema_rs.validator_for(TREE)
    for seed in range(10):
        text = walk(grammar.copy(), tokenizer, random.Random(seed))
        assert jsonschema_rs.is_valid(json.loads(schema), json.loads(text))
        calls = collect(parse_forced(text))
        assert calls
        for name, arguments in calls:
            assert name == "now" or own.is_valid(json.loads(arguments))
            assert choice == "required" or name == "plant"


@given(places=st.lists(st.integers(0, 200), max_size=10), num=st.integers(0, 3))
def test_borders_between_texts_change_nothing(places: list[int], num: int) -> None:
    text = f"[{', '.join([CALL] * num)}]"
    stream = ForcedStream()
    events = [event for piece in cut(text, places) for event in stream.push(piece)]
    assert (
        collect(events + stream.finish()) == [("plant", json.dumps({"$ref": 1, "kind": {}}))] * num
    )
    assert stream.num_calls == num


def test_arguments_come_out_as_they_grow() -> None:
    numbers = count()
    stream = ForcedStream(make_id=lambda: f"id{next(numbers)}")
    assert stream.push(CALL[:37]) == [CallStart(0, "id0", "plant"), CallArguments(0, '{"$ref')]
    assert stream.push(CALL[37:]) == [CallArguments(0, '": 1, "kind": {}}')]


@pytest.mark.parametrize("text", ["Sorry, no.", '{"name": "pl', '[{"nam": 1}]'])
def test_what_is_no_call_comes_out_as_text(text: str) -> None:
    for events in (parse_forced(text), in_steps(text)):
        assert all(isinstance(event, Text) for event in events)
        shown = "".join(event.text for event in events if isinstance(event, Text))
        assert shown == text.lstrip("[")


def test_arguments_that_are_cut_off_are_kept() -> None:
    assert collect(parse_forced(CALL[:39])) == [("plant", '{"$ref":')]


@pytest.mark.parametrize(
    ("tools", "choice", "reason"),
    [
        ([], "required", "there are no tools"),
        (TOOLS, {"function": {"name": "cut"}}, "names none of the functions plant, now"),
        (TOOLS, "sometimes", "tool_choice 'sometimes' names none"),
        ([{"type": "function"}], "required", "no function with a name"),
        ([{"function": {"name": "f", "parameters": [1]}}], "required", "parameters of function f"),
    ],
)
def test_a_choice_that_cannot_be_forced_is_refused(tools: Any, choice: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        forced_schema(tools, choice)


def in_steps(text: str) -> list[ToolEvent]:
    stream = ForcedStream()
    return [event for letter in text for event in stream.push(letter)] + stream.finish()


def collect(events: list[ToolEvent]) -> list[tuple[str, str]]:
    """List each call's name and whole arguments."""
    calls: list[tuple[str, str]] = []
    for event in events:
        assert not isinstance(event, Text)
        if isinstance(event, CallStart):
            assert event.index == len(calls)
            calls.append((event.name, ""))
        else:
            calls[event.index] = (calls[event.index][0], calls[event.index][1] + event.delta)
    return calls
