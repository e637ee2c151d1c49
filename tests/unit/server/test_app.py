"""The application: its routes, what it says of itself, and what surrounds every request."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ConfigDict

from moestro import __version__
from moestro.api.cards import ModelCard
from moestro.api.chat import Message
from moestro.backends.recital import Script
from moestro.backends.scripted import DEFAULT_CARD, ScriptedBackend
from moestro.errors import ConfigError
from moestro.server import openapi
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.server.docs import render
from moestro.server.keys import KeysConfig
from moestro.server.limits import ClientLimits, LimitsConfig
from tests.unit.server.asgi import ask

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
KEY_HASH = "sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"


def get(path: str, backend: ScriptedBackend | None = None) -> httpx.Response:
    return ask(build_app(backend or ScriptedBackend()), "GET", path)


def test_health_and_version_answer_while_a_model_loads_and_ready_says_how_far_it_is() -> None:
    loading = ScriptedBackend(load_s=60)
    assert get("/health", loading).json() == {"status": "ok"}
    assert get("/version", loading).json() == {"version": __version__}
    answer = get("/ready", loading)
    (model,) = answer.json()["models"]
    assert (answer.status_code, model["model"], model["state"]) == (503, "scripted", "loading")
    assert 0 <= model["progress"] < 0.5
    assert answer.headers["retry-after"] == "1"
    assert get("/ready").status_code == 200
    assert get("/ready", ScriptedBackend(cards=())).status_code == 503


def test_a_model_whose_name_has_a_slash_is_shown() -> None:
    card = ModelCard(id="lab/model", created=1, context_length=10)
    backend = ScriptedBackend(cards=(card,))
    assert get("/v1/models/lab/model", backend).json()["max_model_len"] == 10
    assert get("/v1/models", backend).json()["data"][0]["id"] == "lab/model"


def test_a_model_need_not_be_named_where_there_is_one() -> None:
    app = build_app(ScriptedBackend("yes"))
    assert ask(app, "POST", TEXT, json={"prompt": "x"}).json()["model"] == "scripted"
    cards = [ModelCard(id=name, created=1, context_length=10) for name in ("a", "b")]
    answer = ask(build_app(ScriptedBackend(cards=cards)), "POST", TEXT, json={"prompt": "x"})
    assert answer.json()["error"]["message"] == "model is missing: send one of a, b"
    empty = ask(build_app(ScriptedBackend(cards=())), "POST", TEXT, json={"prompt": "x"})
    assert empty.status_code == 400


def test_conversations_are_tokenized_as_a_chat_is() -> None:
    app = build_app(ScriptedBackend())
    answer = ask(app, "POST", "/tokenize", json={"messages": [USER]}).json()
    assert (answer["count"], answer["max_model_len"]) == (2, DEFAULT_CARD.context_length)
    text = ask(app, "POST", "/detokenize", json={"tokens": answer["tokens"]}).json()
    assert text == {"prompt": "user: hi"}
    asked = {"messages": [USER], "return_token_strs": True}
    assert ask(app, "POST", "/tokenize", json=asked).json()["token_strs"] == ["user:", " hi"]
    assert answer["token_strs"] is None
    bad = ask(app, "POST", "/tokenize", json={})
    assert bad.json()["error"]["message"] == "prompt is missing: send it"


def strict(model: type[BaseModel]) -> type[BaseModel]:
    """Return a description that takes no field which it does not name."""
    return type(model.__name__, (model,), {"model_config": ConfigDict(extra="forbid")})


@pytest.mark.parametrize(
    ("method", "path", "body", "described"),
    [
        ("POST", TEXT, {"prompt": "x", "n": 2}, openapi.CompletionAnswer),
        ("POST", TEXT, {"prompt": "x", "logprobs": 1, "xray": True}, openapi.CompletionAnswer),
        ("POST", CHAT, {"messages": [USER], "xray": True}, openapi.ChatAnswer),
        ("POST", CHAT, {"messages": [USER], "logprobs": True}, openapi.ChatAnswer),
        ("POST", "/tokenize", {"prompt": "x"}, openapi.TokensAnswer),
        ("POST", "/detokenize", {"tokens": []}, openapi.TextAnswer),
        ("GET", "/v1/models", None, openapi.ModelsAnswer),
        ("GET", "/v1/models/scripted", None, openapi.ModelAnswer),
        ("GET", "/health", None, openapi.HealthAnswer),
        ("GET", "/ready", None, openapi.ReadyAnswer),
        ("GET", "/version", None, openapi.VersionAnswer),
        ("POST", TEXT, {}, openapi.ErrorAnswer),
        ("GET", "/nothing", None, openapi.ErrorAnswer),
    ],
)
def test_answers_are_what_the_openapi_document_says(
    method: str, path: str, body: Any, described: type[BaseModel]
) -> None:
    answer = ask(build_app(ScriptedBackend()), method, path, json=body)
    strict(described).model_validate_json(answer.content, strict=True)


def test_the_document_names_no_status_that_never_comes_and_each_that_may() -> None:
    document = get("/openapi.json").json()
    always = {"200", "431", "500"}
    own: dict[str, set[str]] = {
        "/health": set(),
        "/ready": {"503"},
        "/v1/models/{model_id}": {"401", "404", "429"},
    }
    written = {"400", "401", "403", "404", "408", "413", "415", "429", "503"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            more = written if method == "post" else own.get(path, {"401", "429"})
            assert operation["responses"].keys() == always | more, path
    for path in (TEXT, CHAT):
        kinds = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert kinds.keys() == {"application/json", "text/event-stream"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_page_of_docs_shows_every_path_and_needs_nothing_from_elsewhere() -> None:
    answer = get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    for path in get("/openapi.json").json()["paths"]:
        assert path in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    for name in ("CompletionBody", "ChatAnswer"):
        assert f'href="#{name}"' in page
        assert f'id="{name}"' in page


def test_the_page_of_docs_takes_no_text_for_html() -> None:
    evil = "<script>alert(1)</script>"
    schema = {"properties": {evil: {"type": evil, "description": evil}}, "description": evil}
    operation = {"description": evil, "responses": {"200": {"content": {evil: {}}}}}
    page = render(
        {
            "info": {"title": evil, "version": evil},
            "paths": {evil: {"get": operation}},
            "components": {"schemas": {evil: schema}},
        }
    )
    assert "<script" not in page


def test_other_origins_are_let_in_only_by_name() -> None:
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed = ask(build_app(ScriptedBackend()), "OPTIONS", TEXT, headers=headers)
    assert (closed.status_code, "access-control-allow-origin" in closed.headers) == (405, False)
    config = ServerConfig(
        cors_origins=("https://a.example",), keys=KeysConfig(allowed={"me": KEY_HASH})
    )
    app = build_app(ScriptedBackend(), config)
    # A browser asks before it sends a key.
    opened = ask(app, "OPTIONS", TEXT, headers=headers)
    assert opened.headers["access-control-allow-origin"] == "https://a.example"
    other = ask(app, "OPTIONS", TEXT, headers=headers | {"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_page_of_another_origin_may_read_every_header_of_an_answer() -> None:
    limits = LimitsConfig(each=ClientLimits(requests_per_minute=9, tokens_per_minute=99))
    app = build_app(
        ScriptedBackend("yes"), ServerConfig(cors_origins=("https://a.example",), limits=limits)
    )
    body = {"messages": [USER], "max_tokens": 9, "experts": "min"}
    headers = {"origin": "https://a.example"}
    answer = ask(app, "POST", "/v1/messages", json=body, headers=headers)
    readable = answer.headers["access-control-expose-headers"].split(", ")
    # Those that a browser shows by itself, and those that are for the browser.
    known = {"content-length", "content-type", "vary"}
    said = {name for name in answer.headers if not name.startswith("access-control-")} - known
    assert {"request-id", "x-moestro-experts", "x-ratelimit-reset-tokens"} <= said
    assert said <= set(readable)


def test_an_echo_that_is_streamed_counts_as_no_generated_token() -> None:
    limits = LimitsConfig(each=ClientLimits(tokens_per_minute=1000))
    app = build_app(ScriptedBackend("yes"), ServerConfig(limits=limits))
    body = {"prompt": "many words " * 40, "echo": True, "max_tokens": 2, "stream": True}
    ask(app, "POST", TEXT, json=body)
    left = ask(app, "POST", TEXT, json=body).headers["x-ratelimit-remaining-tokens"]
    assert int(left) >= 997


def test_a_key_guards_all_but_what_tells_nothing() -> None:
    config = ServerConfig(keys=KeysConfig(allowed={"me": KEY_HASH}))
    app = build_app(ScriptedBackend("yes"), config, open_paths=("/page",))
    for path in ("/v1/models", "/metrics", "/ui/state", "/nothing"):
        assert ask(app, "GET", path).status_code == 401
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert ask(app, "GET", path).status_code == 200
    assert ask(app, "GET", "/page").status_code == 404
    key = {"authorization": "Bearer key"}
    assert ask(app, "GET", "/v1/models", headers=key).status_code == 200


def test_a_body_that_is_too_large_is_a_413_in_the_same_words() -> None:
    body = {"prompt": "x" * 9 * 1024**2}
    answer = ask(build_app(ScriptedBackend()), "POST", TEXT, json=body)
    assert answer.status_code == 413
    openapi.ErrorAnswer.model_validate_json(answer.content)


def test_the_backend_starts_and_stops_with_the_application() -> None:
    async def live() -> list[str]:
        states = []
        async with app.router.lifespan_context(app):
            states.append(backend.stats()[0].state)
        return [*states, backend.stats()[0].state]

    backend = ScriptedBackend()
    app = build_app(backend)
    assert asyncio.run(live()) == ["ready", "stopped"]


def test_an_id_that_could_do_harm_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    app = build_app(ScriptedBackend())
    for bad in ("a b", "x" * 129, "a\tb", ""):
        answer = ask(app, "GET", "/health", headers={"x-request-id": bad})
        assert len(answer.headers["x-request-id"]) == 32
    with caplog.at_level(logging.INFO, "moestro"):
        ask(app, "GET", "/" + "%0Ainjected" + "x" * 200, headers={"x-request-id": "mine"})
    (line,) = caplog.messages
    assert line.startswith("mine GET /\\ninjectedxxx")
    assert len(line) < 200


def test_what_a_chat_asks_reaches_the_backend_under_openais_defaults() -> None:
    backend = ScriptedBackend("yes")
    ask(build_app(backend), "POST", CHAT, json={"messages": [USER]})
    (asked,) = backend.requests
    assert getattr(asked, "messages", None) == (Message(role="user", content="hi"),)
    assert asked.options.max_tokens is None


def test_a_fault_in_the_middle_of_a_stream_is_an_event_without_its_cause() -> None:
    class Broken(ScriptedBackend):
        async def stream(self, request: Any) -> Any:
            async for piece in super().stream(request):
                yield piece
                if getattr(piece, "text", ""):
                    raise KeyError("secret")

    async def ask_broken() -> str:
        transport = httpx.ASGITransport(build_app(Broken("one two")), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"prompt": "x", "stream": True}
            return (await client.post(TEXT, json=body, headers={"x-request-id": "r-1"})).text

    events = asyncio.run(ask_broken()).strip().split("\n\n")
    assert len(events) == 2
    assert '"one"' in events[0]
    assert "internal_error" in events[1]
    assert "r-1" in events[1]
    assert "secret" not in events[1]


def test_a_streams_usage_counts_every_prompt_and_choice() -> None:
    body = {"prompt": ["a", "b b"], "n": 2, "stream": True, "max_tokens": 1}
    body |= {"stream_options": {"include_usage": True}}
    backend = ScriptedBackend(Script(text="one two", cached_tokens=1))
    answer = ask(build_app(backend), "POST", TEXT, json=body)
    *_, last, done = answer.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    assert '"completion_tokens":4' in last
    assert '"prompt_tokens":3' in last
    assert '"cached_tokens":2' in last


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": 70000}, "port is 70000"),
        ({"tls_cert": "cert.pem"}, "belong together"),
        ({"drain_s": -1.0}, "drain_s is -1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**fields)


def test_the_log_tells_of_tokens_where_there_can_be_some(caplog: pytest.LogCaptureFixture) -> None:
    app = build_app(ScriptedBackend())
    with caplog.at_level(logging.INFO, "moestro"):
        ask(app, "GET", "/v1/models")
        ask(app, "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 2})
        ask(app, "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 0})
    page, answer, empty = caplog.messages
    assert page.endswith(" s")
    assert answer.endswith(" s, 2 tokens")
    assert empty.endswith(" s, 0 tokens")
