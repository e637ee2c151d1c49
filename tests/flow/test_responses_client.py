"""The official OpenAI client's Responses API against a real server: all of it unmodified.

Knows no model: a scripted backend answers. Next: serving.py.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pydantic
import pytest

from moestro.api.chat import ToolCall
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError, CapacityError
from moestro.server.app import build_app
from tests.flow.serving import serving, wait_until

TEXT = "Two experts, h\u00e9las \U0001f600, are enough."
ASK: Any = {"model": "scripted", "input": "how many experts?"}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}
CALL = ToolCall(id="call_1", name="weather", arguments='{"city": "Oslo", "days": 3}')
ENDLESS = Script(text="on " * 5000, delay_s=0.005)


class City(pydantic.BaseModel):
    """What an answer is parsed into."""

    name: str


@contextmanager
def asking(*scripts: Script | str) -> Iterator[openai.OpenAI]:
    """Give a client of a server that recites."""
    with serving(build_app(ScriptedBackend(*scripts))) as address, connect(address) as client:
        yield client


def connect(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=20)


def test_a_text_is_answered() -> None:
    with asking(Script(text=TEXT, reasoning="Hm.")) as client:
        response = client.responses.create(**ASK, instructions="be brief", store=True)
    assert response.output_text == TEXT
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert (response.status, response.model) == ("completed", "scripted")
    assert response.usage is not None
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.to_dict()["mean_experts"] == 4.0
    assert response.to_dict()["store"] is False


def test_a_stream_tells_what_a_whole_response_does() -> None:
    script = Script(text=TEXT, reasoning="Hm.", tool_calls=(CALL,))
    with asking(script) as client:
        whole = client.responses.create(**ASK, tools=[WEATHER])
        with client.responses.stream(**ASK, tools=[WEATHER]) as stream:
            events = list(stream)
            streamed = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == TEXT == streamed.output_text == whole.output_text
    assert streamed.usage == whole.usage
    arguments = [
        event for event in events if event.type == "response.function_call_arguments.delta"
    ]
    assert arguments[-1].snapshot == CALL.arguments
    call = streamed.output[-1]
    assert call.type == "function_call"
    assert (call.name, call.call_id, call.arguments) == ("weather", CALL.id, CALL.arguments)


def test_raw_events_have_the_documented_order() -> None:
    with asking("one two") as client:
        events = list(client.responses.create(**ASK, stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "completed"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_round_of_tools_goes_there_and_back() -> None:
    with asking(Script(text="", reasoning="Hm.", tool_calls=(CALL,)), "It rains.") as client:
        first = client.responses.create(**ASK, tools=[WEATHER], tool_choice="required")
        turns: Any = [
            {"role": "user", "content": ASK["input"]},
            *first.output,
            {"type": "function_call_output", "call_id": CALL.id, "output": "rain"},
        ]
        second = client.responses.create(**ASK | {"input": turns}, tools=[WEATHER])
    assert second.output_text == "It rains."


def test_an_answer_can_be_parsed_into_a_model() -> None:
    with asking('{"name": "Oslo"}') as client:
        response = client.responses.parse(**ASK, text_format=City)
        with client.responses.stream(**ASK, text_format=City) as stream:
            streamed = stream.get_final_response()
    assert response.output_parsed == City(name="Oslo")
    assert streamed.output_parsed == City(name="Oslo")


def test_an_answer_cut_by_its_length_is_incomplete() -> None:
    with asking(TEXT) as client:
        response = client.responses.create(**ASK, max_output_tokens=1)
        last = list(client.responses.create(**ASK, max_output_tokens=1, stream=True))[-1]
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert last.type == "response.incomplete"


def test_log_probabilities_reach_the_client() -> None:
    with asking("one two") as client:
        response = client.responses.create(
            **ASK, top_logprobs=2, include=["message.output_text.logprobs"]
        )
    [message] = response.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [(each.token, len(each.top_logprobs)) for each in part.logprobs] == [
        ("one", 2),
        (" two", 2),
    ]


def test_the_async_client_works_too() -> None:
    async def run(address: str) -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any") as client:
            response = await client.responses.create(**ASK)
            async with client.responses.stream(**ASK) as stream:
                return response.output_text, (await stream.get_final_response()).output_text

    with serving(build_app(ScriptedBackend(TEXT))) as address:
        assert asyncio.run(run(address)) == (TEXT, TEXT)


def test_errors_have_the_clients_own_classes() -> None:
    full = Script(error=CapacityError("the queue is full", retry_after_s=7))
    with asking(full) as client:
        with pytest.raises(openai.RateLimitError, match="queue is full") as limited:
            client.responses.create(**ASK)
        with pytest.raises(openai.BadRequestError, match="keeps nothing"):
            client.responses.create(**ASK, previous_response_id="resp_1")
        with pytest.raises(openai.BadRequestError, match="web_search"):
            client.responses.create(**ASK, tools=[{"type": "web_search"}])
    assert limited.value.response.headers["retry-after"] == "7"


def test_a_stream_that_breaks_says_so() -> None:
    script = Script(text="one two", error=BackendError("the engine died"), error_after=1)
    with asking(script) as client:
        last = list(client.responses.create(**ASK, stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message == "the engine died"


def test_a_stream_that_is_left_stops_the_backend() -> None:
    backend = ScriptedBackend(ENDLESS)
    with serving(build_app(backend)) as address, connect(address) as client:
        with client.responses.create(**ASK, stream=True) as stream:
            next(iter(stream))
        wait_until(lambda: bool(backend.aborted))
    assert len(backend.aborted) == 1
