"""Errors: each kind has its status, each mistake one clear line, and nothing leaks."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from moestro.api.relay import Call, Reply
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError, CapacityError, CheckpointError, ConfigError
from moestro.server.app import build_app
from moestro.server.errors import ClientGone, Problem, describe, install
from tests.unit.server.asgi import ask

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def complain(path: str = TEXT, **fields: Any) -> dict[str, Any]:
    """Ask, and return the error's body; the status is 400."""
    answer = ask(build_app(ScriptedBackend()), "POST", path, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConfigError("x"), 400, None),
        (CapacityError("x", 2.2), 429, "rate_limit_exceeded"),
        (BackendError("x"), 503, "unavailable"),
        (CheckpointError("/secret/path is damaged"), 500, "internal_error"),
        (KeyError("secret"), 500, "internal_error"),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int, code: str | None) -> None:
    problem = describe(error, "r1")
    assert (problem.status, problem.code) == (status, code)
    assert "secret" not in problem.message
    assert ("r1" in problem.message) == (status == 500)


def test_waiting_is_told_in_whole_seconds() -> None:
    assert describe(CapacityError("x", 2.2)).headers() == {"retry-after": "3"}
    assert describe(CapacityError("x", 0.01)).headers() == {"retry-after": "1"}
    assert describe(BackendError("x", 7.1)).headers() == {"retry-after": "8"}
    assert describe(BackendError("x")).headers() == {}
    assert describe(ConfigError("x")).headers() == {}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "prompt is missing: send it"),
        ({"prompt": None}, "prompt", "prompt is null: it should be a valid string"),
        ({"prompt": 5}, "prompt", "prompt is 5: it should be a valid string or be a valid list"),
        ({"prompt": ["a", 1]}, "prompt[0]", 'prompt[0] is "a": it should be a valid integer'),
        ({"prompt": "x", "n": 10**6}, "n", "n is 1000000: it should be less than or equal to 128"),
        ({"prompt": "x", "stop": ["a", ""]}, "stop[1]", 'stop[1] is "": it should have at least'),
        ({"prompt": "x", "stop": ["a"] * 10_000}, "stop", "stop is a list of length 10000: it "),
        ({"prompt": "x", "experts": "x" * 99}, "experts", f'experts is "{"x" * 59}...: it should'),
        ({"prompt": "x", "logit_bias": {"1": 200}}, "logit_bias.1", "logit_bias.1 is 200: it "),
        ({"prompt": "x", "stream_options": 1}, "stream_options", "it should be an object"),
        ([1], None, "the body is [1]: it should be an object"),
    ],
)
def test_a_mistake_is_one_line_that_names_field_and_value(
    body: Any, param: str | None, message: str
) -> None:
    error = complain(json=body)
    assert error["param"] == param
    assert message in error["message"]
    assert "\n" not in error["message"]


def test_a_mistake_deep_in_a_chat_is_named_by_its_place() -> None:
    part = {"type": "video_url"}
    error = complain(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
    assert error["param"] == "messages[0].content[0]"
    assert error["message"].endswith("it should be of type text or image_url")
    part = {"type": "image_url", "image_url": {"url": 5}}
    error = complain(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
    assert error["param"] == "messages[0].content[0].image_url.url"
    error = complain(CHAT, json={"messages": [{"content": "x"}]})
    assert error["message"] == "messages[0].role is missing: send it"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is missing"),
        (b"{", "not JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "not JSON"),
        (b'{"prompt": "x", "temperature": -Infinity}', "not JSON"),
        (b'{"prompt": "x", "temperature": 1e999}', "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "\\ud800"}', "not JSON"),
        (b'{"prompt": ' + b"[" * 20_000, "nests too deeply"),
        (b'{"prompt": [' + b"[1]," * 300_000 + b"[1]]}", "more than 50000 lists"),
    ],
)
def test_what_is_not_plain_json_is_refused_in_one_line(content: bytes, message: str) -> None:
    error = complain(content=content, headers={"content-type": "application/json"})
    assert message in error["message"]


@pytest.mark.parametrize(
    ("path", "param", "fields"),
    [
        (TEXT, "prompt", {"prompt": "x" * 90_000}),
        (CHAT, "messages", {"messages": [{"role": "user", "content": "x" * 90_000}]}),
        ("/v1/responses", "input", {"input": "x" * 90_000}),
    ],
)
def test_a_prompt_too_long_is_told_as_clients_look_for_it(
    path: str, param: str, fields: dict[str, Any]
) -> None:
    error = complain(path, json=fields)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "this model's maximum context length is 8192 tokens" in error["message"]


@pytest.mark.parametrize(
    ("path", "param", "fields"),
    [
        (TEXT, "experts", {"experts": 9}),
        (TEXT, "best_of", {"best_of": 2}),
        (TEXT, "stream_options", {"stream_options": {}}),
        (CHAT, "top_logprobs", {"top_logprobs": 1}),
        (CHAT, "tool_choice", {"tool_choice": "required"}),
        (CHAT, "response_format", {"guided_json": {}, "response_format": {"type": "json_object"}}),
        ("/v1/responses", "previous_response_id", {"previous_response_id": "r"}),
    ],
)
def test_a_wish_that_cannot_be_names_its_field(
    path: str, param: str, fields: dict[str, Any]
) -> None:
    asked = {"prompt": "x", "input": "x", "messages": [{"role": "user", "content": "x"}]}
    assert complain(path, json=asked | fields)["param"] == param


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None, "json"])
def test_a_body_that_does_not_say_it_is_json_is_refused(kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = ask(build_app(ScriptedBackend()), "POST", TEXT, content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


def test_json_with_a_charset_or_of_a_kind_is_json() -> None:
    for kind in ("application/json; charset=utf-8", "application/vnd.api+json"):
        app, body = build_app(ScriptedBackend("yes")), b'{"prompt": "x"}'
        answer = ask(app, "POST", TEXT, content=body, headers={"content-type": kind})
        assert answer.json()["choices"][0]["text"] == "yes"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", TEXT, 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_wrong_paths_and_methods_have_the_same_body(
    method: str, path: str, status: int, code: str
) -> None:
    answer = ask(build_app(ScriptedBackend()), method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


def test_a_bug_is_a_500_with_an_id_and_no_word_of_the_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()
    install(app, {})

    @app.get("/bug")
    async def fail() -> None:
        raise KeyError("secret")

    with caplog.at_level(logging.ERROR, "moestro"), pytest.raises(KeyError):
        ask(app, "GET", "/bug")
    assert caplog.messages == ["request  failed: KeyError"]


def test_a_bug_behind_the_middleware_keeps_the_requests_id() -> None:
    class Broken(ScriptedBackend):
        async def detokenize(self, model: str, token_ids: Any) -> str:
            raise KeyError("secret")

    async def ask_broken() -> httpx.Response:
        transport = httpx.ASGITransport(build_app(Broken()), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"x-request-id": "r-1"}
            return await client.post("/detokenize", json={"tokens": []}, headers=headers)

    answer = asyncio.run(ask_broken())
    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (500, ["r-1"])
    assert "r-1" in answer.json()["error"]["message"]
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_bug_in_the_relay_is_a_500_with_the_requests_id_and_no_word_of_the_cause(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        async def relay(self, call: Call) -> Reply | None:
            raise KeyError("secret")

    async def ask_broken() -> httpx.Response:
        app = build_app(ScriptedBackend(), relay=Broken())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, json={}, headers={"x-request-id": "r-1"})

    with caplog.at_level(logging.ERROR, "moestro"):
        answer = asyncio.run(ask_broken())
    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (500, ["r-1"])
    assert "r-1" in answer.json()["error"]["message"]
    assert (answer.json().get("type") == "error") == (path == "/v1/messages")
    assert "secret" not in answer.text
    assert caplog.messages == ["request r-1 failed: KeyError"]


def test_another_dialect_answers_below_its_own_paths_only() -> None:
    def say(problem: Problem) -> Any:
        return {"oh": problem.message}

    app = FastAPI()
    install(app, {"/other": say})

    @app.get("/other/full")
    @app.get("/full")
    async def fail() -> None:
        raise CapacityError("full", 5)

    @app.get("/gone")
    async def leave() -> None:
        raise ClientGone

    answer = ask(app, "GET", "/other/full")
    assert (answer.status_code, answer.json()) == (429, {"oh": "full"})
    assert answer.headers["retry-after"] == "5"
    assert ask(app, "GET", "/full").json()["error"]["message"] == "full"
    assert ask(app, "GET", "/gone").status_code == 499


def test_an_error_of_the_backend_reaches_the_client_in_its_own_words() -> None:
    backend = ScriptedBackend(Script(error=BackendError("the engine died: wait")))
    answer = ask(build_app(backend), "POST", TEXT, json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the engine died: wait")
