"""Whatever a backend does, the client gets a whole answer or OpenAI's error body.

Each fault is one of a real server. Next: test_failover.py, upstreams.py.
"""

import asyncio
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from moestro.errors import BackendError, CapacityError
from moestro.gateway.faults import Fault
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    Behavior,
    answer_of,
    breaks,
    end_early,
    gateway_over,
    raw,
    read_stream,
    replies,
    reset,
    stall,
    well,
    whole_text,
)

SECRET = "sk-very-secret-1234"
FAST = replace(QUICK, timeouts=replace(QUICK.timeouts, first_token_s=0.5))
HUGE = b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000 + b"\r\n\r\n"
OTHER = {"id": "x", "model": "somebody-else", "choices": [{"index": 0, "message": {}}]}

FAULTS: dict[str, Behavior] = {
    "resets": reset,
    "hangs": stall,
    "is no HTTP": raw(b"\x00\x01garbage\r\n\r\n"),
    "huge headers": raw(HUGE),
    "closes at once": raw(b""),
    "half a body": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{"),
    "half a head": raw(b"HTTP/1.1 200 OK\r\nconte"),
    "no JSON": replies(200, b"<html>hello</html>"),
    "no answer": replies(200, {"hello": "world"}),
    "a list": replies(200, [1, 2]),
    "no UTF-8": replies(
        200, json.dumps(OTHER).replace("{}", '{"content": "\xff"}').encode("latin1")
    ),
    "error in a 200": replies(200, {"error": {"message": "no"}}),
    "500": replies(500),
    "502": replies(502, b"<html>Bad Gateway</html>"),
    "503": replies(503),
    "redirect": replies(302, b"", "location: http://127.0.0.1:1/v1"),
    "other success": replies(204, b""),
    "denied": replies(401, {"error": {"message": f"bad key {SECRET}"}}),
    "unpaid": replies(402, {"error": {"message": "Insufficient Balance"}}),
    "asks for time": replies(503, {"error": {"message": "loading"}}, "retry-after: 0"),
    "asked too much": replies(429, {"error": {"message": "slow down"}}, "retry-after: 0"),
}

# No use to ask there again; see test_blame.py.
ABSENT: dict[str, Behavior] = {
    "unknown model": replies(404, {"error": {"message": "no such model"}}),
    "forbidden": replies(403, {"error": {"message": f"not with {SECRET}"}}),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_another_backend_answers(fault: str, is_stream: bool) -> None:
    async def work() -> Any:
        async with gateway_over({"m": [[FAULTS[fault], well]]}, FAST) as running:
            if is_stream:
                return read_stream(await running.stream())[0], running
            reply = await running.ask()
            assert reply.status == 200
            said = json.loads(reply.body)["choices"][0]["message"]["content"]
            assert reply.headers["x-moestro-attempts"] == "2"
            return said, running

    text, running = run(work())
    assert text == whole_text()
    assert running.records[0].outcome == "answered"
    assert running.records[0].num_attempts == 2


@pytest.mark.parametrize("fault", FAULTS | ABSENT)
def test_nobody_else_is_a_clear_error(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", SECRET)

    async def work() -> Any:
        config = replace(FAST, retries=0)
        behavior = (FAULTS | ABSENT)[fault]
        async with gateway_over({"m": [behavior]}, config, key="env:SECRET_KEY") as running:
            with pytest.raises((BackendError, CapacityError)) as raised:
                await running.ask()
            return str(raised.value), running

    message, running = run(work())
    assert message.startswith("m/0 ")
    assert SECRET not in message
    assert "127.0.0.1" not in message
    record = running.records[0]
    assert record.outcome in ("failed", "refused")
    assert SECRET not in repr(record)
    assert SECRET not in repr(running.gateway.view())
    asking = running.servers["m"][0].asked[0]
    assert asking.headers["authorization"] == f"Bearer {SECRET}"


def test_a_refused_connection_is_followed_by_another_backend() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well, well]}) as running:
            server = running.servers["m"][0]
            upstream = running.gateway._lines["m"].members[0].upstream
            upstream.__dict__["place"] = replace(upstream.place, port=1)
            replies_ = [await running.ask() for _ in range(8)]
            return [reply.status for reply in replies_], len(server.asked)

    assert run(work()) == ([200] * 8, 0)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_clients_mistake_is_passed_on_and_not_repeated(status: int) -> None:
    body = {"error": {"message": "temperature is 9", "type": "invalid_request_error"}}

    async def work() -> Any:
        async with gateway_over({"m": [replies(status, body), well]}) as running:
            return await running.ask(), running

    seen = [run(work()) for _ in range(8)]
    refused = [each for each in seen if each[0].status != 200]
    assert refused
    reply, running = refused[0]
    assert reply.status == status
    assert json.loads(reply.body) == body
    assert running.records[0].outcome == "refused"
    assert running.records[0].num_attempts == 1


@pytest.mark.parametrize("body", [{"message": "too long"}, b"<html>", {"detail": "too long"}])
def test_a_refusal_in_other_words_becomes_openais_error(body: object) -> None:
    async def work() -> Any:
        async with gateway_over({"m": [replies(400, body)]}) as running:
            return await running.ask()

    error = json.loads(run(work()).body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("m/0 refused the request")


def test_a_refusal_does_not_repeat_our_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", SECRET)
    body = {"error": {"message": f"you sent {SECRET}"}}

    async def work() -> Any:
        async with gateway_over({"m": [replies(400, body)]}, key="env:SECRET_KEY") as running:
            return await running.ask()

    assert SECRET.encode() not in run(work()).body


def test_retry_after_is_honored_and_told() -> None:
    busy = replies(429, {"error": {"message": "slow"}}, "retry-after: 7")

    async def work() -> Any:
        async with gateway_over({"m": [busy]}) as running:
            waits = []
            for _ in range(2):
                with pytest.raises(CapacityError) as raised:
                    await running.ask()
                waits.append(raised.value.retry_after_s)
            return waits, len(running.servers["m"][0].asked)

    waits, num_asked = run(work())
    assert waits[0] == 7
    assert 0 < waits[1] <= 7
    assert num_asked == 1


def test_a_lie_about_the_model_is_shown_or_refused() -> None:
    lie = replies(200, answer_of({"messages": [], "model": ""}, "hi", "somebody-else"))

    async def work(checks: bool) -> Any:
        async with gateway_over({"m": [[lie, well]]}, checks_model=checks) as running:
            reply = await running.ask()
            return json.loads(reply.body)["model"], running.gateway.view().models[0].backends[0]

    model, view = run(work(False))
    assert model == "somebody-else"
    model, view = run(work(True))
    assert model == "m"
    assert view.num_errors == 1


def test_what_leaves_something_behind_is_asked_once() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [[FAULTS["500"], well]]}) as running:
            with pytest.raises(Fault):
                await running.ask(store=True)
            return len(running.servers["m"][0].asked)

    assert run(work()) == 1


def test_the_clients_own_key_goes_nowhere() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well]}) as running:
            await running.ask(headers={"authorization": "Bearer client", "cookie": "a=b"})
            return running.servers["m"][0].asked[0].headers

    headers = run(work())
    assert "authorization" not in headers
    assert "cookie" not in headers
    assert headers["accept-encoding"] == "identity"


def test_a_backend_that_fails_is_left_alone_and_tried_again() -> None:
    async def work() -> Any:
        config = replace(QUICK, retries=0)
        async with gateway_over({"m": [[FAULTS["500"]] * 5 + [well]]}, config) as running:
            for _ in range(5):
                with pytest.raises(BackendError):
                    await running.ask()
            server = running.servers["m"][0]
            with pytest.raises(BackendError):
                await running.ask()
            num_while_open = len(server.asked)
            view = running.gateway.view().models[0].backends[0]
            while running.gateway.view().models[0].backends[0].breaker == "open":
                await msleep()
            reply = await running.ask()
            return num_while_open, view, reply.status

    num, view, status = run(work())
    assert (num, view.breaker, view.is_up, status) == (5, "open", False, 200)


def test_the_name_at_the_backend_is_the_only_change_to_a_body() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well]}, model="theirs") as running:
            await running.ask(seed=2**60, x={"y": [1.50]})
            return running.servers["m"][0].asked[0].body

    body = run(work())
    assert body["model"] == "theirs"
    assert (body["seed"], body["x"]) == (2**60, {"y": [1.5]})


def test_a_stream_that_ends_before_it_says_anything_is_tried_again() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [[breaks(0, end_early), well]]}) as running:
            return read_stream(await running.stream())[0], running

    text, running = run(work())
    assert text == whole_text()
    assert running.records[0].num_failovers == 0


def test_an_answer_has_headers_that_say_who_and_why() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well]}) as running:
            return (await running.ask()).headers, running

    headers, running = run(work())
    assert headers["x-moestro-model"] == "m"
    assert headers["x-moestro-backend"] == "m/0"
    assert headers["x-moestro-reason"] == "named"
    record = running.records[0]
    assert record.cost_usd == pytest.approx((5 * 1 + 12 * 2) / 1e6)
    assert msgspec.json.encode(record)


async def msleep() -> None:
    await asyncio.sleep(0.02)
