"""OpenAI's bodies: what becomes of each field, what is left out, and what one cannot ask for."""

from typing import Any

import pytest
from pydantic import ValidationError

from moestro.api.chat import Constraint, Options, ToolChoice
from moestro.api.openai_bodies import ChatBody, CompletionBody
from moestro.api.openai_requests import (
    find_echo,
    read_chat,
    read_completions,
    read_usage_events,
)
from moestro.api.sampling import Sampling
from moestro.errors import ConfigError

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def completion_options(**fields: Any) -> Options:
    return read_completions(CompletionBody.model_validate({"prompt": "x"} | fields), "m")[0].options


def chat_options(**fields: Any) -> Options:
    return read_chat(ChatBody.model_validate({"messages": [USER]} | fields), "m").options


def test_defaults_are_openais() -> None:
    assert completion_options() == Options(max_tokens=16)
    assert chat_options() == Options(max_tokens=None)


def test_the_assistants_last_message_can_be_continued() -> None:
    begun = {"role": "assistant", "content": "It is"}
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    body = ChatBody.model_validate({"messages": [USER, begun]} | fields)
    assert read_chat(body, "m").continues_final


def test_an_answer_need_not_be_begun() -> None:
    def asked(**fields: Any) -> Any:
        return read_chat(ChatBody.model_validate({"messages": [USER]} | fields), "m")

    assert asked().has_generation_prompt
    assert not asked(add_generation_prompt=False).has_generation_prompt
    assert asked(add_special_tokens=True).has_special_tokens
    assert not asked().has_special_tokens
    body = CompletionBody.model_validate({"prompt": "x", "add_special_tokens": False})
    assert not read_completions(body, "m")[0].has_special_tokens
    body = CompletionBody.model_validate({"prompt": "x", "split_special_tokens": False})
    assert not read_completions(body, "m")[0].splits_special_tokens


def test_an_echo_is_of_the_assistants_last_message_only() -> None:
    begun = {"role": "assistant", "content": "It is"}
    for turns, expected in (([USER, begun], "It is"), ([USER], ""), ([begun, USER], "")):
        assert find_echo(read_chat(ChatBody.model_validate({"messages": turns}), "m")) == expected


def test_what_cannot_be_continued_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not the assistant's"):
        chat_options(continue_final_message=True)
    with pytest.raises(ConfigError, match="both true"):
        chat_options(continue_final_message=True, add_generation_prompt=True)


def test_a_field_that_is_null_is_as_if_absent() -> None:
    names = set(CompletionBody.model_fields) - {"prompt"}
    assert completion_options(**dict.fromkeys(names)) == completion_options()
    names = set(ChatBody.model_fields) - {"messages"}
    assert chat_options(**dict.fromkeys(names)) == chat_options()


def test_unknown_fields_are_ignored() -> None:
    assert chat_options(user="me", store=True, made_up={"x": 1}) == chat_options()


def test_every_knob_arrives() -> None:
    options = completion_options(
        max_tokens=5,
        n=2,
        best_of=2,
        stop="end",
        stop_token_ids=[3],
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        logit_bias={"17": -100},
        seed=-3,
        min_tokens=2,
        ignore_eos=True,
        priority=-2,
        experts="min",
        xray=True,
        logprobs=0,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        bad_words=["worse"],
        truncate_prompt_tokens=-1,
    )
    sampling = options.sampling
    assert (options.max_tokens, options.num_choices, options.stops) == (5, 2, ("end",))
    assert (options.stop_token_ids, options.priority, options.experts) == ((3,), -2, "min")
    assert (options.wants_xray, options.top_logprobs) == (True, 0)
    assert (options.keeps_stop, options.shows_special, options.bad_words) == (
        True, True, ("worse",),
    )  # fmt: skip
    assert options.truncate_prompt_tokens == -1
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 7)
    assert (sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 1, -1)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.5, {17: -100})
    assert (sampling.seed, sampling.min_tokens, sampling.ignore_eos) == (-3, 2, True)


def test_numbers_that_javascript_writes_are_whole_and_minus_one_is_no_top_k() -> None:
    assert completion_options(max_tokens=16.0, top_k=-1) == completion_options(top_k=0)


def test_what_a_request_does_not_say_of_sampling_is_left_open() -> None:
    assert set(vars(chat_options().sampling).values()) == {None}
    said = chat_options(temperature=1, top_p=1, top_k=0, min_p=0, repetition_penalty=1).sampling
    model = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.1)
    assert said.fill(model) == Sampling()
    assert chat_options().sampling.fill(model) == model


def test_a_chat_takes_the_newer_name_of_max_tokens_and_asks_for_logprobs_twice() -> None:
    assert chat_options(max_tokens=3, max_completion_tokens=4).max_tokens == 4
    assert chat_options(logprobs=True).top_logprobs == 0
    assert chat_options(logprobs=True, top_logprobs=5).top_logprobs == 5
    assert chat_options(logprobs=False).top_logprobs is None
    assert chat_options(logprobs=False, top_logprobs=0).top_logprobs is None


def test_an_effort_reaches_the_template_and_none_is_no_thinking() -> None:
    def variables(**fields: Any) -> Any:
        body = ChatBody.model_validate({"messages": [USER]} | fields)
        return read_chat(body, "m").template_variables

    off = {"thinking": False, "enable_thinking": False, "reasoning_effort": "none"}
    assert variables(reasoning_effort="none") == off
    assert variables(reasoning_effort="high")["reasoning_effort"] == "high"
    assert variables(reasoning_effort="high")["thinking"]
    assert variables(reasoning_effort="none", chat_template_kwargs={"thinking": True})["thinking"]
    assert variables() == {}


def test_only_a_turn_that_calls_tools_has_no_content() -> None:
    call = {"id": "c", "function": {"name": "look", "arguments": "{}"}}
    turns = [{"role": "assistant"}, {"role": "assistant", "tool_calls": [call]}, {"role": "user"}]
    asked = read_chat(ChatBody.model_validate({"messages": turns}), "m")
    assert [message.content for message in asked.messages] == ["", None, ""]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("one", ["one"]),
        ("", [""]),
        (["one", "two"], ["one", "two"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_a_prompt_has_four_shapes(prompt: Any, prompts: list[Any]) -> None:
    body = CompletionBody.model_validate({"prompt": prompt, "suffix": "end", "echo": True})
    asked = read_completions(body, "m")
    assert [each.prompt for each in asked] == prompts
    assert {(each.model, each.suffix, each.echo) for each in asked} == {("m", "end", True)}


def test_of_several_prompts_each_waits_behind_the_answers_to_those_before() -> None:
    asked = read_completions(CompletionBody(prompt=["a", "b", "c"], n=3), "m")
    assert [each.options.turn for each in asked] == [0, 3, 6]


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint(kind="json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}},
            Constraint(kind="json_schema", source='{"a":1}'),
        ),
        ({"guided_json": {"a": 1}}, Constraint(kind="json_schema", source='{"a":1}')),
        ({"guided_json": '{"a": 1}'}, Constraint(kind="json_schema", source='{"a": 1}')),
        ({"guided_regex": "a+"}, Constraint(kind="regex", source="a+")),
        ({"guided_grammar": 'start: "a"'}, Constraint(kind="lark", source='start: "a"')),
        (
            {"guided_choice": ["yes", 'n"o']},
            Constraint(kind="lark", source='start: "yes" | "n\\"o"'),
        ),
        ({"structured_outputs": {"json": {}}}, Constraint(kind="json_schema", source="{}")),
        ({"structured_outputs": {"regex": "a"}}, Constraint(kind="regex", source="a")),
        ({"structured_outputs": {"choice": ["a"]}}, Constraint(kind="lark", source='start: "a"')),
        ({"structured_outputs": {"grammar": "g"}}, Constraint(kind="lark", source="g")),
        ({"structured_outputs": {"json_object": True}}, Constraint(kind="json_object")),
        ({"structured_outputs": {"json_object": False}}, None),
    ],
)
def test_each_way_to_constrain_an_answer_is_read(
    fields: dict[str, Any], constraint: Constraint | None
) -> None:
    assert chat_options(**fields).constraint == constraint


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice(mode="none")),
        ("required", ToolChoice(mode="required")),
        (
            {"type": "function", "function": {"name": "look"}},
            ToolChoice(mode="named", name="look"),
        ),
    ],
)
def test_a_choice_of_tools_is_read(choice: Any, expected: ToolChoice) -> None:
    body = {"messages": [USER], "tools": [TOOL], "tool_choice": choice}
    asked = read_chat(ChatBody.model_validate(body | {"parallel_tool_calls": False}), "m")
    assert asked.tool_choice == expected
    assert not asked.has_parallel_tool_calls
    assert [(tool.name, tool.parameters) for tool in asked.tools] == [("look", {"type": "object"})]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_logprobs": 3}, "top_logprobs is 3 without logprobs"),
        ({"stream_options": {}}, "stream_options is given without stream"),
        ({"tool_choice": "required"}, "there are no tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice names 'x'",
        ),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_json and guided_regex are both given"),
        ({"response_format": {"type": "json_schema"}}, "json_schema is missing"),
    ],
)
def test_wishes_that_contradict_each_other_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        chat_options(**fields)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_tools_that_are_not_allowed_a_model_is_not_told(mode: Any) -> None:
    other = {"type": "function", "function": {"name": "smell"}}
    named = {"type": "function", "function": {"name": "look"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named]}}
    body = {"messages": [USER], "tools": [other, TOOL], "tool_choice": choice}
    asked = read_chat(ChatBody.model_validate(body), "m")
    assert [tool.name for tool in asked.tools] == ["look"]
    assert asked.tool_choice == ToolChoice(mode=mode)
    with pytest.raises(ConfigError, match="tool_choice allows 'look': choose among tools"):
        read_chat(ChatBody.model_validate(body | {"tools": [other]}), "m")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, "none"),
        ({}, "none"),
        ({"continuous_usage_stats": True}, "none"),
        ({"include_usage": True}, "last"),
        ({"include_usage": True, "continuous_usage_stats": True}, "all"),
    ],
)
def test_a_streams_events_have_the_usage_that_is_asked_for(options: Any, expected: str) -> None:
    body = CompletionBody.model_validate({"prompt": "x", "stream": True, "stream_options": options})
    assert read_usage_events(body) == expected


def test_best_of_is_refused_unless_it_changes_nothing() -> None:
    with pytest.raises(ConfigError, match="best_of is 3 and n 1"):
        completion_options(best_of=3)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"n": True},
        {"n": 1.5},
        {"max_tokens": -1},
        {"max_tokens": "5"},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"seed": 2**63},
        {"stop": [""]},
        {"stop": ["x"] * 17},
        {"stop": "x" * 1001},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {str(number): 1 for number in range(1025)}},
        {"logprobs": 21},
        {"experts": 0},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -2},
        {"bad_words": [""]},
        {"bad_words": ["x"] * 129},
        {"bad_words": "x"},
        {"experts": "most"},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ["x"] * 129},
        {"prompt": [-1]},
        {"prompt": ["x", 1]},
        {"stream": "yes"},
    ],
)
def test_wrong_types_and_ranges_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        completion_options(**fields)
