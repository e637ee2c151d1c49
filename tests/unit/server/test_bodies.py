"""Bodies: too large or too slow is refused without reading to the end, whatever the app does."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from moestro.errors import ConfigError
from moestro.server.bodies import BodyConfig, BodyGuard
from tests.unit.server.asgi import ask, ask_async, run_raw, say_size

PATH = "/v1/chat/completions"


def guard(**fields: Any) -> BodyGuard:
    return BodyGuard(say_size, BodyConfig(**{"max_bytes": 100} | fields))


def piece(body: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": not is_last}


def test_a_body_within_the_limit_passes_whole() -> None:
    assert ask(guard(), "POST", PATH, content=b"x" * 100).text == "100"


def test_a_declared_size_over_the_limit_is_refused_unread() -> None:
    answer = ask(guard(), "POST", PATH, content=b"x" * 101)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert answer.headers["connection"] == "close"


def test_a_packed_body_is_refused_before_it_is_read_and_named() -> None:
    packed = gzip.compress(b"{}")
    answer = ask(guard(), "POST", PATH, content=packed, headers={"content-encoding": "GZIP"})
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    error = answer.json()["error"]
    assert error["message"] == "content-encoding is GZIP: send the body as it is"
    assert error["code"] == "unsupported_media_type"
    plain = {"content-encoding": "identity"}
    assert ask(guard(), "POST", PATH, content=b"{}", headers=plain).text == "2"


@pytest.mark.parametrize("declared", [b"9" * 5000, b"99999999999999999999"])
def test_a_declared_size_of_any_length_is_read(declared: bytes) -> None:
    scope = {"path": PATH, "headers": [(b"content-length", declared)]}
    sent = asyncio.run(run_raw(guard(), scope, piece(b"", is_last=True)))
    assert sent[0]["status"] == 413


def test_a_body_in_chunks_is_counted_as_it_comes() -> None:
    num_sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal num_sent
        for _ in range(20):
            num_sent += 1
            yield b"x" * 30

    async def run() -> httpx.Response:
        return await ask_async(guard(), "POST", PATH, content=chunks())

    answer = asyncio.run(run())
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == (
        "the body has more than 100 bytes, the limit: send less at once"
    )


def test_anthropics_path_gets_anthropics_words() -> None:
    answer = ask(guard(), "POST", "/v1/messages", content=b"x" * 101)
    assert answer.json()["error"]["type"] == "request_too_large"


def test_a_body_that_stops_coming_is_given_up() -> None:
    sent = asyncio.run(run_raw(guard(timeout_s=0.01), {"path": PATH}, piece(b"half")))
    assert sent[0]["status"] == 408
    assert b"4 bytes so far" in sent[1]["body"]
    assert (b"connection", b"close") in sent[0]["headers"]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


def test_after_a_refusal_the_application_is_not_heard() -> None:
    sent = asyncio.run(
        run_raw(guard(), {"path": PATH}, piece(b"x" * 101), piece(b"", is_last=True))
    )
    assert [message["type"] for message in sent] == [
        "http.response.start",
        "http.response.body",
        "http.response.body",
    ]
    assert sent[0]["status"] == 413


def test_an_answer_that_was_begun_is_not_answered_again() -> None:
    async def answer_first(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"late", "more_body": False})

    app = BodyGuard(answer_first, BodyConfig(max_bytes=1))
    sent = asyncio.run(run_raw(app, {"path": PATH}, piece(b"xx")))
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_after_the_body_one_may_wait_as_long_as_one_likes() -> None:
    async def wait_longer(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.05)
        await send({"type": "http.response.start", "status": 204, "headers": []})

    app = BodyGuard(wait_longer, BodyConfig(timeout_s=0.01))
    sent = asyncio.run(run_raw(app, {"path": PATH}, piece(b"x", is_last=True)))
    assert sent[0]["status"] == 204


def test_a_client_that_goes_away_is_not_answered() -> None:
    gone: Message = {"type": "http.disconnect"}
    sent = asyncio.run(run_raw(guard(), {"path": PATH}, piece(b"x"), gone))
    assert sent[1]["body"] == b"gone"


@pytest.mark.parametrize("fields", [{"max_bytes": 0}, {"timeout_s": 0.0}])
def test_limits_that_let_nothing_through_are_a_mistake(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        BodyConfig(**fields)
