"""OpenAI's answers: whole and streamed say the same, in each of the two formats."""

from collections.abc import Sequence
from typing import Any

import pytest

from moestro.api.chunks import Alternative, Chunk, Started, Token, ToolCallDelta, Usage, Visit
from moestro.api.openai_answers import Head, HttpAnswer
from moestro.api.openai_choices import ChatChoices, Choices, CompletionChoices, View
from moestro.api.whole import add_usages

HEAD = Head(id="answer-1", created=7)
ALL = View(has_logprobs=True, has_xray=True)
STARTED = Started(model="m", prompt_tokens=3)
USAGE = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1, mean_experts=2.5)


def token(text: str, logprob: float | None = -0.5, **fields: Any) -> Token:
    data = fields.pop("data", text.encode())
    return Token(token_id=1, text=text, data=data, logprob=logprob, **fields)


def whole(choices: Choices, *pieces: Started | Chunk, prompt: int = 0) -> dict[str, Any]:
    answer = HttpAnswer(HEAD, choices, choices_per_prompt=1)
    for piece in pieces:
        answer.gather(prompt, piece)
    return answer.whole()


def events(choices: Choices, pieces: Sequence[Started | Chunk], **fields: Any) -> list[Any]:
    answer = HttpAnswer(HEAD, choices, choices_per_prompt=fields.pop("n", 1), **fields)
    return [event for piece in pieces for event in answer.events(0, piece)] + [
        *answer.last_events()
    ]


def test_a_completion_has_its_envelope_and_its_usage() -> None:
    pieces = (Chunk(text="a"), Chunk(text="b", finish="stop", stop="c"), Chunk(usage=USAGE))
    assert whole(CompletionChoices(View()), STARTED, *pieces) == {
        "id": "answer-1",
        "object": "text_completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "text": "ab",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": "c",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "draft_tokens": 0,
                "accepted_draft_tokens": 0,
            },
            "mean_experts": 2.5,
        },
    }


def test_the_stop_token_that_ended_an_answer_is_told_by_its_number_even_if_that_is_0() -> None:
    pieces = (STARTED, Chunk(text="a", finish="stop", stop=0), Chunk(usage=USAGE))
    for choices in (CompletionChoices(View()), ChatChoices(View())):
        assert whole(choices, *pieces)["choices"][0]["stop_reason"] == 0


def test_choices_come_in_order_whatever_ended_first() -> None:
    answer = HttpAnswer(HEAD, CompletionChoices(View()), choices_per_prompt=2)
    for prompt, index, text in ((1, 1, "d"), (0, 1, "b"), (1, 0, "c"), (0, 0, "a")):
        answer.gather(prompt, Chunk(index=index, text=text, finish="stop"))
    found = [(choice["index"], choice["text"]) for choice in answer.whole()["choices"]]
    assert found == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]


def test_legacy_log_probabilities_are_parallel_lists() -> None:
    likeliest = (
        Alternative(token_id=2, text="x", data=b"x", logprob=-0.1),
        Alternative(token_id=3, text="x", data=b"x", logprob=-0.2),
        Alternative(token_id=4, text="z", data=b"z", logprob=float("-inf")),
    )
    tokens = (
        token("p", None),
        token("a", alternatives=likeliest),
        token("\\xe2\\x82", data=b"\xe2\x82"),
        token("\\xac", data=b"\xac"),
        token("b", float("-inf")),
    )
    (choice,) = whole(CompletionChoices(ALL), STARTED, Chunk(tokens=tokens))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["p", "a", "\\xe2\\x82", "\\xac", "b"],
        "token_logprobs": [None, -0.5, -0.5, -0.5, -9999.0],
        "top_logprobs": [
            None,
            {"x": -0.1, "z": -9999.0, "a": -0.5},
            {"\\xe2\\x82": -0.5},
            {"\\xac": -0.5},
            {"b": -9999.0},
        ],
        "text_offset": [0, 1, 2, 2, 3],
    }


def test_offsets_go_on_through_a_stream_for_each_choice() -> None:
    pieces = [
        Chunk(index=index, text=text, tokens=(token(text),))
        for index, text in ((0, "ab"), (1, "c"), (0, "d"), (1, "e"))
    ]
    found = events(CompletionChoices(ALL), pieces, n=2)
    offsets = [event["choices"][0]["logprobs"]["text_offset"] for event in found]
    assert offsets == [[0], [0], [2], [1]]


def test_a_chats_log_probabilities_are_objects_with_bytes() -> None:
    other = Alternative(token_id=2, text="x", data=b"\xff", logprob=-2.0)
    pieces = (Chunk(text="a", tokens=(token("a", alternatives=(other,)),)),)
    (choice,) = whole(ChatChoices(ALL), STARTED, *pieces)["choices"]
    entry = {"token": "a", "logprob": -0.5, "bytes": [97]}
    top = [{"token": "x", "logprob": -2.0, "bytes": [255]}]
    assert choice["logprobs"]["content"] == [entry | {"top_logprobs": top}]


def test_an_answer_without_a_token_has_log_probabilities_of_none_where_they_were_asked_for() -> (
    None
):
    pieces = (STARTED, Chunk(finish="stop"), Chunk(usage=USAGE))
    chat = whole(ChatChoices(ALL), *pieces)["choices"][0]["logprobs"]
    assert chat == {"content": [], "refusal": None}
    text = whole(CompletionChoices(ALL), *pieces)["choices"][0]["logprobs"]
    assert text == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    assert whole(ChatChoices(View()), *pieces)["choices"][0]["logprobs"] is None


def test_an_x_ray_has_experts_by_layer() -> None:
    visits = ((Visit(expert=3, weight=0.75),), (Visit(expert=1, weight=1.0),))
    seen = token("a", num_experts=1.0, visits=visits)
    for choices in (CompletionChoices(ALL), ChatChoices(ALL)):
        (choice,) = whole(choices, STARTED, Chunk(text="a", tokens=(seen,)))["choices"]
        experts = [[{"expert": 3, "weight": 0.75}], [{"expert": 1, "weight": 1.0}]]
        assert choice["xray"] == [{"text": "a", "num_experts": 1.0, "experts": experts}]


def test_a_streamed_chat_begins_with_its_role_and_ends_with_its_usage() -> None:
    pieces = [STARTED, Chunk(text="a"), Chunk(finish="length"), Chunk(usage=USAGE)]
    first, text, finish, last = events(ChatChoices(View()), pieces, usage_events="last")
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text["choices"][0]["delta"] == {"content": "a"}
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "length")
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 5
    assert [event["usage"] for event in (first, text, finish)] == [None] * 3
    assert {event["object"] for event in (first, text, finish, last)} == {"chat.completion.chunk"}


@pytest.mark.parametrize("make", [CompletionChoices, ChatChoices])
def test_a_running_usage_is_in_every_event_and_an_echo_is_not_of_the_answer(make: Any) -> None:
    echo = Chunk(text="p", tokens=(token("p"),), is_echo=True)
    said = Chunk(text="ab", tokens=(token("a"), token("b")))
    pieces = [STARTED, echo, said, Chunk(finish="stop"), Chunk(usage=USAGE)]
    *found, last = events(make(View()), pieces, usage_events="all")
    counts = [event["usage"]["completion_tokens"] for event in found]
    assert counts[-3:] == [0, 2, 2]
    assert {event["usage"]["prompt_tokens"] for event in found} == {3}
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == USAGE.completion_tokens


def test_a_chats_echo_comes_before_the_answer_whole_and_streamed() -> None:
    choices, pieces = ChatChoices(View(echo="It ")), [STARTED, Chunk(text="is", finish="stop")]
    (choice,) = whole(choices, *pieces)["choices"]
    assert choice["message"]["content"] == "It is"
    deltas = [event["choices"][0]["delta"] for event in events(choices, pieces)]
    assert [delta["content"] for delta in deltas] == ["It ", "is"]


def test_a_stream_without_a_wish_for_usage_says_nothing_of_it() -> None:
    pieces = [STARTED, Chunk(text="a"), Chunk(usage=USAGE)]
    found = events(ChatChoices(View()), pieces)
    assert len(found) == 2
    assert not any("usage" in event for event in found)


@pytest.mark.parametrize("make", [CompletionChoices, ChatChoices])
def test_half_a_character_is_an_event_only_for_who_wants_tokens(make: Any) -> None:
    half = Chunk(tokens=(token("\\xe2", data=b"\xe2"),))
    assert events(make(View()), [half]) == []
    (event,) = events(make(ALL), [half])
    assert event["choices"][0]["logprobs"] is not None


def test_tool_calls_are_put_together_and_their_pieces_have_an_index() -> None:
    pieces = [
        Chunk(tool_calls=(ToolCallDelta(index=0, id="c1", name="f"),)),
        Chunk(tool_calls=(ToolCallDelta(index=1, id="c2", name="g", arguments="{}"),)),
        Chunk(tool_calls=(ToolCallDelta(index=0, arguments="[1]"),)),
        Chunk(finish="tool_calls"),
    ]
    message = whole(ChatChoices(View()), STARTED, *pieces)["choices"][0]["message"]
    assert message["content"] is None
    assert [(call["id"], call["type"], call["function"]) for call in message["tool_calls"]] == [
        ("c1", "function", {"name": "f", "arguments": "[1]"}),
        ("c2", "function", {"name": "g", "arguments": "{}"}),
    ]
    deltas = [
        event["choices"][0]["delta"].get("tool_calls")
        for event in events(ChatChoices(View()), pieces)
    ]
    assert deltas[2] == [{"index": 0, "function": {"arguments": "[1]"}}]
    assert deltas[0][0]["id"] == "c1"


def test_an_event_has_one_piece_of_each_tool_call() -> None:
    chunk = Chunk(
        tool_calls=(
            ToolCallDelta(index=0, id="c1", name="f"),
            ToolCallDelta(index=0, arguments="{"),
            ToolCallDelta(index=0, arguments="}"),
            ToolCallDelta(index=1, id="c2", name="g", arguments="["),
        )
    )
    (event,) = events(ChatChoices(View()), [chunk])
    calls = event["choices"][0]["delta"]["tool_calls"]
    assert [(call["index"], call["id"], call["function"]) for call in calls] == [
        (0, "c1", {"name": "f", "arguments": "{}"}),
        (1, "c2", {"name": "g", "arguments": "["}),
    ]


def test_reasoning_has_its_own_field_in_a_chat_and_is_not_lost_in_a_completion() -> None:
    pieces = (Chunk(reasoning="hm "), Chunk(text="yes", finish="stop"))
    message = whole(ChatChoices(View()), STARTED, *pieces)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm ", "yes")
    (choice,) = whole(CompletionChoices(View()), STARTED, *pieces)["choices"]
    assert choice["text"] == "hm yes"
    delta = events(ChatChoices(View()), pieces)[0]["choices"][0]["delta"]
    assert delta == {"reasoning_content": "hm "}


def test_usages_add_up_and_experts_are_a_mean_over_tokens() -> None:
    other = Usage(prompt_tokens=1, completion_tokens=6, reasoning_tokens=2, mean_experts=4.5)
    none = Usage(prompt_tokens=1, completion_tokens=9)
    total = add_usages([USAGE, other, none])
    assert (total.prompt_tokens, total.completion_tokens, total.cached_tokens) == (5, 17, 1)
    assert (total.reasoning_tokens, total.mean_experts) == (2, 4.0)
    assert add_usages([none, none]).mean_experts is None
