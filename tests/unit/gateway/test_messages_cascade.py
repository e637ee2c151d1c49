"""/v1/messages asked of `auto` with a cascade: by probabilities in OpenAI's words, by text in any.

Next: test_cascade.py, test_messages_auto.py.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest

from moestro.api.relay import Call
from moestro.gateway.asked import read_call
from moestro.gateway.translatable import is_translatable
from tests.unit.gateway import test_anthropic
from tests.unit.gateway.test_cascade import Above, Says, says
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.test_messages_auto import speak_openai
from tests.unit.gateway.test_served import served
from tests.unit.gateway.upstreams import Running, replies, whole_text

# A message that is a text alone: what a rule looks at.
WRITTEN = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": whole_text()}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 12},
}
TURN = {"role": "user", "content": "easy"}
RESULT = {"type": "tool_result", "tool_use_id": "t"}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


async def writes(asking: Any) -> None:
    if asking.body.get("stream"):
        await test_anthropic.well(asking)
    else:
        await asking.whole(WRITTEN)


@asynccontextmanager
async def a_pair(small: Any, rule: Any, *, is_small_openais: bool) -> AsyncIterator[Any]:
    """Serve a small model behind a cascade's rule, and one that speaks Anthropic's dialect."""
    policy = ScriptedPolicy(cascade=rule)
    behaviors: Any = {"weak": [small], "strong": [writes]}
    async with served(behaviors, policy=policy, dialect="anthropic") as (root, running):
        if is_small_openais:
            speak_openai(running, "weak")
        async with anthropic.AsyncAnthropic(base_url=root, api_key="-", max_retries=0) as client:
            yield client, running


async def ask(client: Any, *, is_stream: bool = False, **fields: Any) -> str:
    body: Any = {"model": "auto", "max_tokens": 99, "messages": [TURN]} | fields
    if not is_stream:
        message = await client.messages.create(**body)
        return "".join(block.text for block in message.content)
    async with client.messages.stream(**body) as stream:
        text: str = await stream.get_final_text()
        return text


def asked_of(running: Running) -> tuple[int, int]:
    return len(running.servers["weak"][0].asked), len(running.servers["strong"][0].asked)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("logprob", "reason", "asked"),
    [(-0.1, "cascade: kept", (1, 0)), (-3, "cascade: not sure enough", (1, 1))],
)
def test_a_small_model_that_tells_probabilities_is_asked_first(
    is_stream: bool, logprob: float, reason: str, asked: tuple[int, int]
) -> None:
    async def work() -> Any:
        pair = a_pair(says(logprob), Above(), is_small_openais=True)
        async with pair as (client, running):
            return await ask(client, is_stream=is_stream), running

    text, running = run(work())
    assert text == whole_text()
    [record] = running.records
    assert (record.reason, asked_of(running)) == (reason, asked)
    assert record.model == ("weak" if reason == "cascade: kept" else "strong")


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("ending", "reason", "asked"),
    [
        (whole_text()[-5:], "cascade: kept", (1, 0)),
        ("never", "cascade: not sure enough", (1, 1)),
    ],
)
def test_a_text_is_looked_at_in_the_small_models_own_words(
    is_stream: bool, ending: str, reason: str, asked: tuple[int, int]
) -> None:
    async def work() -> Any:
        rule = Says(ending)
        async with a_pair(writes, rule, is_small_openais=False) as (client, running):
            # What no other dialect has words for goes on as it came.
            text = await ask(client, is_stream=is_stream, service_tier="auto")
            return text, rule.shown, running

    text, shown, running = run(work())
    assert text == whole_text()
    assert shown == [(whole_text(), ())]
    assert (running.records[0].reason, asked_of(running)) == (reason, asked)
    assert running.servers["weak"][0].asked[0].path == "/v1/messages"
    assert running.servers["weak"][0].asked[0].body["service_tier"] == "auto"


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"tools": [SEARCH]},
        {"extra_headers": {"anthropic-beta": "context-1m-2025-08-07"}},
    ],
    ids=str,
)
def test_what_translation_would_lose_goes_to_the_strongest_as_it_came(fields: Any) -> None:
    async def work() -> Any:
        async with a_pair(says(-0.1), Above(), is_small_openais=True) as (client, running):
            return await ask(client, **fields), running

    text, running = run(work())
    [record], [asking] = running.records, running.servers["strong"][0].asked
    assert text == whole_text()
    assert (record.model, record.reason) == ("strong", "no cascade here: the strongest")
    assert asked_of(running) == (0, 1)
    fields.pop("extra_headers", None)
    assert asking.body | fields == asking.body


def test_a_small_model_without_probabilities_in_its_words_is_not_kept() -> None:
    async def work() -> Any:
        async with a_pair(writes, Above(), is_small_openais=False) as (client, running):
            return await ask(client), running

    text, running = run(work())
    assert text == whole_text()
    assert (running.records[0].model, asked_of(running)) == ("strong", (0, 1))


@pytest.mark.parametrize("is_openais", [True, False])
def test_a_small_model_that_fails_leaves_the_answer_to_the_strongest(is_openais: bool) -> None:
    async def work() -> Any:
        rule = Above() if is_openais else Says("")
        async with a_pair(replies(500), rule, is_small_openais=is_openais) as (client, running):
            return await ask(client), running.records[0]

    text, record = run(work())
    assert text == whole_text()
    assert record.reason == "cascade; weak did not answer"


@pytest.mark.parametrize(
    ("fields", "is_so"),
    [
        ({}, True),
        ({"metadata": {"user_id": "x"}, "stop_sequences": ["x"], "top_k": 5, "stream": True}, True),
        ({"thinking": {"type": "disabled"}}, True),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, True),
        ({"output_config": {"effort": "high"}}, False),
        ({"thinking": {"type": "adaptive"}}, False),
        ({"service_tier": "auto"}, False),
        ({"mcp_servers": []}, False),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, True),
        ({"messages": [{"role": "user", "content": [RESULT | {"is_error": True}]}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, False),
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any"}}, True),
        ({"tools": [{"name": "f", "input_schema": {}, "strict": True}]}, False),
    ],
    ids=str,
)
def test_only_what_openais_words_can_say_is_translatable(fields: Any, is_so: bool) -> None:
    body = {"model": "auto", "max_tokens": 9, "messages": [TURN]} | fields
    call = Call(path="/v1/messages", body=json.dumps(body).encode(), request_id="r")
    assert is_translatable(read_call(call)) is is_so
