"""POST /v1/messages over HTTP: whole, streamed, counted; errors in Anthropic's words."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from moestro.api.chat import ChatRequest, ToolCall
from moestro.api.chunks import Started
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError, CapacityError
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.server.limits import ClientLimits, LimitsConfig
from tests.unit.server.asgi import ask, run_raw

PATH = "/v1/messages"
HELLO: dict[str, Any] = {
    "model": "scripted",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hello"}],
}


def post(backend: ScriptedBackend, path: str = PATH, **fields: Any) -> httpx.Response:
    return ask(build_app(backend), "POST", path, json=HELLO | fields)


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
    script = Script(text="Two experts.", reasoning="Hm.", cached_tokens=1)
    answer = post(ScriptedBackend(script), experts=2)
    message = answer.json()
    assert answer.status_code == 200
    assert message["model"] == "scripted"
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["content"][1]["text"] == "Two experts."
    assert message["usage"]["cache_read_input_tokens"] == 1
    assert message["usage"]["mean_experts"] == 2.0
    assert answer.headers["x-moestro-model"] == "scripted"
    assert answer.headers["x-moestro-experts"] == "2"
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_a_stream_tells_the_same() -> None:
    call = ToolCall(id="t1", name="weather", arguments='{"city": "Bonn"}')
    backend = ScriptedBackend(Script(text="Let me see.", tool_calls=(call,)))
    answer = post(backend, stream=True)
    events = events_of(answer)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == "Let me see."
    assert "".join(delta.get("partial_json", "") for delta in deltas) == call.arguments
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] > 0


def test_what_is_asked_reaches_the_backend() -> None:
    backend = ScriptedBackend("one STOP two")
    answer = post(backend, stop_sequences=["STOP"], temperature=0, model=None)
    assert answer.json()["stop_reason"] == "stop_sequence"
    assert answer.json()["stop_sequence"] == "STOP"
    [request] = backend.requests
    assert isinstance(request, ChatRequest)
    assert request.options.sampling.temperature == 0


def test_tokens_are_counted_without_an_answer() -> None:
    backend = ScriptedBackend()
    asked = {"messages": [{"role": "user", "content": "one two three"}], "system": "be brief"}
    answer = ask(build_app(backend), "POST", f"{PATH}/count_tokens", json=asked)
    assert answer.json() == {"input_tokens": len(asyncio.run(ids_of(backend, asked)))}
    assert not backend.requests


async def ids_of(backend: ScriptedBackend, asked: dict[str, Any]) -> list[int]:
    """Return the tokens that the same conversation has for the backend."""
    body = asked | {"max_tokens": 1}
    transport = httpx.ASGITransport(build_app(ScriptedBackend()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        usage = (await client.post(PATH, json=body)).json()["usage"]
    return [0] * usage["input_tokens"]


@pytest.mark.parametrize(
    ("fields", "status", "kind", "words"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"max_tokens": "many"}, 400, "invalid_request_error", 'max_tokens is "many"'),
        ({"temperature": -1}, 400, "invalid_request_error", "temperature is -1"),
        ({"experts": 9}, 400, "invalid_request_error", "experts is 9"),
        ({"tools": [{"type": "bash_20250124", "name": "b"}]}, 400, "invalid_request_error", "bash"),
        ({"model": "gpt-9"}, 404, "not_found_error", "gpt-9"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            400,
            "invalid_request_error",
            "messages[0].content[0]",
        ),
    ],
)
def test_mistakes_are_named_in_anthropics_body(
    fields: dict[str, Any], status: int, kind: str, words: str
) -> None:
    answer = post(ScriptedBackend(), **fields)
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == kind
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b'{"max_tokens": NaN}', b"\xff"])
def test_what_is_no_json_is_a_mistake_too(content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = ask(build_app(ScriptedBackend()), "POST", PATH, content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_backend_says_when_to_come_again(stream: bool) -> None:
    script = Script(error=CapacityError("the queue is full", retry_after_s=2.5))
    answer = post(ScriptedBackend(script), stream=stream)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_failure_in_the_middle_whole_is_an_error() -> None:
    script = Script(text="one two", error=BackendError("the engine died"), error_after=1)
    answer = post(ScriptedBackend(script))
    assert answer.status_code == 503
    assert answer.json()["error"] == {"type": "api_error", "message": "the engine died"}


def test_a_failure_in_the_middle_of_a_stream_ends_it_with_an_error() -> None:
    script = Script(text="one two", error=BackendError("the engine died"), error_after=1)
    events = events_of(post(ScriptedBackend(script), stream=True))
    assert events[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "the engine died"},
    }
    assert "message_stop" not in {event["type"] for event in events}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [Script(queue_s=60), Script(delay_s=60)])
def test_a_client_that_goes_away_frees_the_backend(script: Script, stream: bool) -> None:
    backend = ScriptedBackend(script)
    body = msgspec.json.encode(HELLO | {"stream": stream})
    scope = {
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    whole = {"type": "http.request", "body": body, "more_body": False}
    asyncio.run(run_raw(build_app(backend), scope, whole, {"type": "http.disconnect"}))
    assert len(backend.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_generated_counts_against_the_client(stream: bool) -> None:
    limits = LimitsConfig(each=ClientLimits(tokens_per_minute=2))
    app = build_app(ScriptedBackend("one two three"), ServerConfig(limits=limits))
    first = ask(app, "POST", PATH, json=HELLO | {"stream": stream})
    second = ask(app, "POST", PATH, json=HELLO)
    assert [first.status_code, second.status_code] == [200, 429]
    assert "2 generated tokens per minute" in second.json()["error"]["message"]


def test_a_backend_begins_with_started() -> None:
    class Wordless(ScriptedBackend):
        async def stream(self, request: Any) -> Any:
            async for piece in super().stream(request):
                if not isinstance(piece, Started):
                    yield piece

    with pytest.raises(AssertionError, match="first word is Started"):
        post(Wordless())


def test_a_fault_of_our_own_ends_a_stream_with_an_error_that_tells_nothing() -> None:
    class Faulty(ScriptedBackend):
        async def stream(self, request: Any) -> Any:
            async for piece in super().stream(request):
                yield piece
                if not isinstance(piece, Started):
                    raise KeyError("secret")

    sent = []

    async def collect() -> None:
        app = build_app(Faulty("one two"))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            sent.append(await client.post(PATH, json=HELLO | {"stream": True}))

    asyncio.run(collect())
    last = events_of(sent[0])[-1]
    assert last["error"]["type"] == "api_error"
    assert "secret" not in sent[0].text
