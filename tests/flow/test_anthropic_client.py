"""The official Anthropic client against a real server: all of it unmodified.

Knows no model: a scripted backend answers. Next: serving.py.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import pydantic
import pytest

from moestro.api.chat import ToolCall
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError, CapacityError
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.server.keys import KeysConfig
from tests.flow.serving import serving, wait_until

TEXT = "Two experts, h\u00e9las \U0001f600, are enough."
ASK: Any = {
    "model": "scripted",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "how many experts?"}],
}
WEATHER: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}
CALL = ToolCall(id="toolu_1", name="weather", arguments='{"city": "Oslo", "days": 3}')
ENDLESS = Script(text="on " * 5000, delay_s=0.005)


@contextmanager
def asking(
    *scripts: Script | str, config: ServerConfig | None = None, key: str = "any"
) -> Iterator[anthropic.Anthropic]:
    """Give a client of a server that recites."""
    app = build_app(ScriptedBackend(*scripts), config)
    with serving(app) as address, connect(address, key) as client:
        yield client


def connect(address: str, key: str = "any") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=address, api_key=key, max_retries=0, timeout=20)


def test_a_message_is_answered() -> None:
    with asking(Script(text=TEXT, reasoning="Hm.")) as client:
        message = client.messages.create(**ASK, system="be brief")
    thinking, text = message.content
    assert thinking.type == "thinking"
    assert thinking.thinking == "Hm."
    assert text.type == "text"
    assert text.text == TEXT
    assert (message.stop_reason, message.model) == ("end_turn", "scripted")
    assert message.usage.output_tokens > 0
    assert message.usage.to_dict()["mean_experts"] == 4.0
    assert message._request_id


def test_experts_can_be_asked_for() -> None:
    with asking(TEXT) as client:
        answer = client.messages.with_raw_response.create(**ASK, extra_body={"experts": 2.5})
    assert answer.headers["x-moestro-experts"] == "2.5"
    assert answer.parse().usage.to_dict()["mean_experts"] < 4


def test_a_stream_tells_what_a_whole_message_does() -> None:
    script = Script(text=TEXT, reasoning="Hm.", tool_calls=(CALL,))
    with asking(script) as client:
        whole = client.messages.create(**ASK, tools=[WEATHER])
        with client.messages.stream(**ASK, tools=[WEATHER]) as stream:
            texts = list(stream.text_stream)
            streamed = stream.get_final_message()
    assert len(texts) > 3
    assert "".join(texts) == TEXT
    assert streamed.stop_reason == whole.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert [block.to_dict(exclude_none=True) for block in streamed.content] == [
        block.to_dict(exclude_none=True) for block in whole.content
    ]


def test_raw_events_have_the_documented_order() -> None:
    with asking("one two") as client:
        kinds = [event.type for event in client.messages.create(**ASK, stream=True)]
    assert kinds == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]


def test_a_round_of_tools_goes_there_and_back() -> None:
    with asking(Script(text="", tool_calls=(CALL,)), "It rains.") as client:
        first = client.messages.create(**ASK, tools=[WEATHER], tool_choice={"type": "any"})
        [call] = first.content
        assert first.stop_reason == "tool_use"
        assert call.type == "tool_use"
        assert call.input == {"city": "Oslo", "days": 3}
        turns: Any = [
            *ASK["messages"],
            {"role": "assistant", "content": first.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}],
            },
        ]
        second = client.messages.create(**ASK | {"messages": turns}, tools=[WEATHER])
    assert second.content[0].to_dict()["text"] == "It rains."


def test_an_answer_can_be_parsed_into_a_model() -> None:
    class City(pydantic.BaseModel):
        name: str

    with asking('{"name": "Oslo"}') as client:
        message = client.messages.parse(**ASK, output_format=City)
    assert message.parsed_output == City(name="Oslo")


def test_tokens_are_counted() -> None:
    with asking(TEXT) as client:
        counted = client.messages.count_tokens(model="scripted", messages=ASK["messages"])
        used = client.messages.create(**ASK).usage
    assert counted.input_tokens == used.input_tokens


def test_the_async_client_works_too() -> None:
    async def run(address: str) -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=address, api_key="any") as client:
            message = await client.messages.create(**ASK)
            async with client.messages.stream(**ASK) as stream:
                text = await stream.get_final_text()
            return message.content[0].to_dict()["text"], text

    with serving(build_app(ScriptedBackend(TEXT))) as address:
        assert asyncio.run(run(address)) == (TEXT, TEXT)


def test_errors_have_the_clients_own_classes() -> None:
    full = Script(error=CapacityError("the queue is full", retry_after_s=7))
    with asking(full) as client:
        with pytest.raises(anthropic.RateLimitError, match="queue is full") as limited:
            client.messages.create(**ASK)
        with pytest.raises(anthropic.NotFoundError, match="gpt-9"):
            client.messages.create(**ASK | {"model": "gpt-9"})
        with pytest.raises(anthropic.BadRequestError, match="max_tokens is 0") as wrong:
            client.messages.create(**ASK | {"max_tokens": 0})
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.type == "rate_limit_error"
    assert wrong.value.request_id
    assert wrong.value.type == "invalid_request_error"


def test_a_stream_that_breaks_raises_in_the_client() -> None:
    script = Script(text="one two", error=BackendError("the engine died"), error_after=1)
    with asking(script) as client, pytest.raises(anthropic.APIStatusError, match="engine died"):
        list(client.messages.create(**ASK, stream=True))


def test_a_key_is_asked_for_in_anthropics_header() -> None:
    key = "a long and random key"
    digest = hashlib.sha256(key.encode()).hexdigest()
    config = ServerConfig(keys=KeysConfig(allowed={"alice": f"sha256:{digest}"}))
    with serving(build_app(ScriptedBackend(TEXT), config)) as address:
        with connect(address, key) as client:
            assert client.messages.create(**ASK).stop_reason == "end_turn"
        with (
            connect(address, "wrong") as client,
            pytest.raises(anthropic.AuthenticationError, match="API key") as refused,
        ):
            client.messages.create(**ASK)
    assert refused.value.type == "authentication_error"


def test_a_stream_that_is_left_stops_the_backend() -> None:
    backend = ScriptedBackend(ENDLESS)
    with serving(build_app(backend)) as address, connect(address) as client:
        with client.messages.stream(**ASK | {"max_tokens": 5000}) as stream:
            next(iter(stream.text_stream))
        wait_until(lambda: bool(backend.aborted))
    assert len(backend.aborted) == 1
