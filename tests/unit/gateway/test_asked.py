"""What is read of a request, what of it is changed, and what its sender hears of a mistake."""

import json
from typing import Any

import msgspec
import pytest

from moestro.api.chat import (
    ChatRequest,
    CompletionRequest,
    Constraint,
    Image,
    Message,
    Options,
    Tool,
    ToolCall,
    ToolChoice,
)
from moestro.api.openai_bodies import ChatBody, CompletionBody
from moestro.api.openai_requests import read_chat, read_completions
from moestro.api.relay import Call
from moestro.api.sampling import SamplingWish
from moestro.errors import ConfigError, DataError
from moestro.gateway.asked import Asked, read_call
from moestro.gateway.continuing import changes_to_continue
from moestro.gateway.writing import read_chunks, write_request


def read(body: bytes | dict[str, Any], path: str = "/v1/chat/completions") -> Asked:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_call(Call(path=path, body=data, request_id="r"))


TURNS = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not an object"),
        (b"{}", "model is missing"),
        (b'{"model": 5}', "model is 5: it should be a text"),
        (b'{"model": "m"}', "messages is missing"),
        (b'{"model": "m", "messages": "hi"}', "it should be a list of messages"),
        (b'{"model": "m", "messages": [5]}', "it should be a list of messages"),
        (b'{"model": "m", "messages": [{}], "stream": 1}', "it should be true or false"),
        (b'{"model": "m", "messages": ' + b"[" * 100_000, "JSON|nests"),
    ],
)
def test_a_mistake_is_one_line(body: bytes, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as raised:
        read(body)
    assert "\n" not in str(raised.value)


def test_a_prompt_is_needed_for_a_completion() -> None:
    with pytest.raises(ConfigError, match="prompt is missing"):
        read({"model": "m"}, "/v1/completions")
    assert read({"model": "m", "prompt": [1, 2]}, "/v1/completions").prompt == ""
    assert read({"model": "m", "prompt": ["a", "b"]}, "/v1/completions").prompt == "a\nb"


def test_only_the_models_name_is_changed() -> None:
    body = b'{"model":"m","messages":[{}],"x":1.50,"y":12345678901234567890123,"z":"\\u00e9"}'
    changed = read(body).body_for("n")
    assert changed == body.replace(b'"model":"m"', b'"model":"n"')
    plain = body.replace(b"\\u00e9", b"")
    assert read(plain).body_for("m") is plain


def test_two_names_of_the_model_become_one() -> None:
    body = b'{"model":"x","messages":[{}],"mod\\u0065l":"m"}'
    assert read(body).body_for("m") == b'{"model":"m","messages":[{}]}'


def test_an_image_counts_by_itself_and_not_by_its_bytes() -> None:
    url = f"data:image/png;base64,{'A' * 4_000_000}"
    openais = {"type": "image_url", "image_url": {"url": url}}
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 4_000_000}
    anthropics = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [anthropics]}
    odd = [{"type": "image_url", "image_url": 5}, {"type": "image"}, 7]
    for content, num in (([openais], 1), ([anthropics, result], 2), (odd, 2), ("say", 0)):
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        assert 1000 * num < read(body).estimated_tokens < 1000 * num + 200
    assert read({"model": "m", "prompt": "x" * 4000}, "/v1/completions").estimated_tokens > 1000


def test_odd_options_are_no_options() -> None:
    asked = read({"model": "m", "messages": TURNS, "stream_options": 5, "max_tokens": "x"})
    assert not asked.wants_usage
    assert asked.number("max_tokens") is None
    assert not read({"model": "m", "messages": TURNS, "stream_options": None}).wants_usage
    assert asked.body_with({"stream_options": None}).count(b"stream_options") == 0


def test_a_turn_that_the_client_left_open_stays_one() -> None:
    turns = [*TURNS, {"role": "assistant", "content": "It "}]
    asked = read({"model": "m", "messages": turns, "continue_final_message": True})
    changes = changes_to_continue(asked, "is", 1)
    assert msgspec.json.decode(msgspec.json.encode(changes["messages"])) == [
        *TURNS,
        {"role": "assistant", "content": "It is"},
    ]


def test_a_chat_is_written_as_it_is_read() -> None:
    tools = (Tool(name="look", description="d", parameters={"type": "object"}),)
    asked = ChatRequest(
        model="m",
        messages=(
            Message(role="user", content=("hi", Image(url="http://x/y.png", detail="low"), "?")),
            Message(role="assistant", tool_calls=(ToolCall(id="t", name="look", arguments="{}"),)),
            Message(role="tool", content="1", tool_call_id="t"),
            Message(role="assistant", content="It "),
        ),
        tools=tools,
        tool_choice=ToolChoice(mode="named", name="look"),
        has_parallel_tool_calls=False,
        template_variables={"thinking": True},
        continues_final=True,
        has_special_tokens=True,
        options=Options(
            max_tokens=5,
            num_choices=2,
            stops=("x",),
            keeps_stop=True,
            shows_special=True,
            bad_words=("y",),
            truncate_prompt_tokens=-1,
            sampling=SamplingWish(temperature=0, top_p=1, logit_bias={3: 1.0}, seed=4),
            constraint=Constraint(kind="json_object"),
            top_logprobs=2,
            experts=2.5,
        ),
    )
    body = json.loads(msgspec.json.encode(write_request(asked)))
    assert read_chat(ChatBody.model_validate(body), "m") == asked
    # Some templates take a turn of calls whose content is absent, not null, for one of words.
    assert body["messages"][1]["content"] is None


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(kind="json_schema", source='{"type":"object"}'),
        Constraint(kind="json_object"),
        Constraint(kind="regex", source="a+"),
        Constraint(kind="lark", source="start: x"),
    ],
)
def test_a_completion_is_written_as_it_is_read(constraint: Constraint) -> None:
    options = Options(max_tokens=5, constraint=constraint, top_logprobs=1)
    asked = CompletionRequest(
        model="m",
        prompt="a",
        suffix="b",
        echo=True,
        has_special_tokens=False,
        splits_special_tokens=False,
        options=options,
    )
    body = json.loads(msgspec.json.encode(write_request(asked)))
    assert read_completions(CompletionBody.model_validate(body), "m") == [asked]


def test_an_event_is_read_into_chunks() -> None:
    call = {"index": 0, "id": "t", "function": {"name": "look", "arguments": "{"}}
    entry = {"token": "a", "logprob": -1.0, "bytes": [97]}
    choice = {
        "index": 1,
        "delta": {"content": "a", "reasoning": "hm", "tool_calls": [call]},
        "logprobs": {"content": [entry]},
        "finish_reason": "function_call",
        "stop_reason": "x",
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "mean_experts": 2.5}
    first, last = read_chunks({"choices": [choice], "usage": usage})
    assert (first.index, first.text, first.reasoning, first.stop) == (1, "a", "hm", "x")
    assert (first.finish, first.tool_calls[0].name) == ("tool_calls", "look")
    assert (first.tokens[0].data, first.tokens[0].logprob) == (b"a", -1.0)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.mean_experts) == (3, 2.5)
