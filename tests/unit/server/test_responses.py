"""POST /v1/responses over HTTP: whole, streamed; errors in OpenAI's words."""

from typing import Any

import httpx
import msgspec
import pytest

from moestro.api.chat import ToolCall
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError, CapacityError
from moestro.server.app import build_app
from tests.unit.server.asgi import ask

PATH = "/v1/responses"


def post(backend: ScriptedBackend, **fields: Any) -> httpx.Response:
    return ask(build_app(backend), "POST", PATH, json={"input": "hello"} | fields)


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Read server-sent events; each must say its type twice."""
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = msgspec.json.decode(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def test_an_answer_comes_whole() -> None:
    call = ToolCall(id="c1", name="weather", arguments="{}")
    script = Script(text="Two experts.", reasoning="Hm.", tool_calls=(call,))
    answer = post(ScriptedBackend(script), experts="min", metadata={"team": "red"})
    response = answer.json()
    assert answer.status_code == 200
    assert response["status"] == "completed"
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
    ]
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert response["output"][1]["content"][0]["text"] == "Two experts."
    assert response["usage"]["mean_experts"] == 2.0
    assert response["metadata"] == {"team": "red"}
    assert answer.headers["x-moestro-model"] == "scripted"


def test_a_stream_tells_the_same() -> None:
    events = events_of(post(ScriptedBackend("Two experts."), stream=True))
    deltas = (event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert "".join(deltas) == "Two experts."
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    whole = events[-1]["response"]
    assert whole["output"][0]["content"][0]["text"] == "Two experts."
    assert whole["usage"]["output_tokens"] > 0


def test_an_answer_cut_by_its_length_is_incomplete() -> None:
    response = post(ScriptedBackend("one two three"), max_output_tokens=1).json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


def test_log_probabilities_come_with_their_tokens() -> None:
    fields = {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    response = post(ScriptedBackend("one two"), **fields).json()
    logprobs = response["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs] == ["one", " two"]
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [2, 2]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"input": None}, 400, "input"),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ({"tools": [{"type": "file_search"}]}, 400, "tools[0] is of type file_search"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, 400, "input[0]"),
        ({"max_output_tokens": 0}, 400, "max_output_tokens is 0"),
        ({"model": "gpt-9"}, 404, "gpt-9"),
    ],
)
def test_mistakes_are_named_in_openais_body(
    fields: dict[str, Any], status: int, words: str
) -> None:
    answer = post(ScriptedBackend(), **fields)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_a_full_backend_says_when_to_come_again() -> None:
    script = Script(error=CapacityError("the queue is full", retry_after_s=2.5))
    answer = post(ScriptedBackend(script), stream=True)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


def test_a_failure_in_the_middle_of_a_stream_ends_it_as_failed() -> None:
    script = Script(text="one two", error=BackendError("the engine died"), error_after=1)
    last = events_of(post(ScriptedBackend(script), stream=True))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine died"}
