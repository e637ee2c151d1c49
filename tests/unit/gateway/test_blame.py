"""A request that a backend cannot take says nothing of the backend: others are answered as before.

Next: test_faults.py, upstreams.py.
"""

from dataclasses import replace
from typing import Any

import pytest

from moestro.errors import BackendError, ConfigError
from tests.unit.gateway.test_anthropic import well as well_anthropic
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import QUICK, Asking, Behavior, gateway_over, raw, replies, well

# More than open a breaker, with a retry each.
MANY = 4
FLAGGED = {"error": {"code": 403, "message": "no", "metadata": {"reasons": ["violence"]}}}


def chat_only(status: int) -> Behavior:
    async def behave(asking: Asking) -> None:
        if asking.path == "/v1/completions":
            await asking.whole({"detail": "Not Found"}, status)
        else:
            await well(asking)

    return behave


def forbids(word: str, body: object) -> Behavior:
    async def behave(asking: Asking) -> None:
        if word in asking.body["messages"][0]["content"]:
            await asking.whole(body, 403)
        else:
            await well(asking)

    return behave


def test_a_path_that_anthropics_backends_lack_is_a_mistake_and_asks_nobody() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well_anthropic]}, dialect="anthropic") as running:
            for _ in range(MANY):
                with pytest.raises(ConfigError, match="m/0 cannot be asked at /v1/completions"):
                    await running.ask("/v1/completions")
            reply = await running.ask()
            backend = running.gateway.view().models[0].backends[0]
            return reply.status, len(running.servers["m"][0].asked), backend

    status, num_asked, backend = run(work())
    assert (status, num_asked) == (200, 1)
    assert (backend.num_requests, backend.num_errors, backend.breaker) == (1, 0, "closed")


@pytest.mark.parametrize("status", [404, 405])
def test_a_path_that_a_backend_lacks_is_asked_once_and_opens_no_breaker(status: int) -> None:
    async def work() -> Any:
        async with gateway_over({"m": [chat_only(status)]}) as running:
            for _ in range(MANY):
                with pytest.raises(BackendError, match="m/0 does not know the model or the path"):
                    await running.ask("/v1/completions")
            asked = len(running.servers["m"][0].asked)
            return asked, (await running.ask()).status, running

    asked, status, running = run(work())
    assert (asked, status) == (MANY, 200)
    backend = running.gateway.view().models[0].backends[0]
    assert (backend.num_errors, backend.breaker) == (MANY, "closed")


def test_another_backend_may_have_the_path() -> None:
    async def work() -> Any:
        config = replace(QUICK, retries=1)
        async with gateway_over({"m": [chat_only(404), well]}, config) as running:
            return [(await running.ask("/v1/completions")).status for _ in range(8)]

    assert run(work()) == [200] * 8


def test_what_one_dialect_cannot_say_goes_to_a_backend_of_the_other() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well_anthropic, well]}) as running:
            upstream = running.gateway._lines["m"].members[0].upstream
            upstream.__dict__["config"] = replace(upstream.config, dialect="anthropic")
            answers = [await running.ask("/v1/completions") for _ in range(8)]
            answers += [await running.ask(n=2) for _ in range(8)]
            return [each.status for each in answers], len(running.servers["m"][0].asked)

    assert run(work()) == ([200] * 16, 0)


def test_what_a_models_dialect_cannot_say_goes_to_the_next_model_of_auto() -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [well_anthropic], "strong": [well]}
        async with gateway_over(behaviors, policy=ScriptedPolicy()) as running:
            upstream = running.gateway._lines["weak"].members[0].upstream
            upstream.__dict__["config"] = replace(upstream.config, dialect="anthropic")
            return (await running.ask(model="auto", n=2)).headers["x-moestro-model"]

    assert run(work()) == "strong"


def test_a_text_that_is_forbidden_does_not_shut_others_out() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [forbids("bomb", b"<html>blocked</html>")]}) as running:
            bad = [{"role": "user", "content": "bomb"}]
            for _ in range(MANY):
                with pytest.raises(BackendError, match="m/0 does not allow this"):
                    await running.ask(messages=bad)
            num_asked = len(running.servers["m"][0].asked)
            return num_asked, (await running.ask()).status

    assert run(work()) == (MANY, 200)


def test_a_moderators_refusal_is_told_to_who_asked() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [replies(403, FLAGGED)]}) as running:
            reply = await running.ask()
            return reply.status, reply.body, running.gateway.view().models[0].backends[0]

    status, body, backend = run(work())
    assert status == 403
    assert b"violence" in body
    assert backend.num_errors == 0


def test_a_path_that_is_not_there_lets_the_next_request_try_a_half_open_breaker() -> None:
    async def work() -> Any:
        steps = [*[replies(500)] * 5, chat_only(404)]
        config = replace(QUICK, retries=0)
        async with gateway_over({"m": [steps]}, config) as running:
            for _ in range(5):
                with pytest.raises(BackendError):
                    await running.ask()
            health = running.gateway._lines["m"].members[0].health
            health._clock = lambda clock=health._clock: clock() + 1
            with pytest.raises(BackendError, match="the path"):
                await running.ask("/v1/completions")
            return (await running.ask()).status

    assert run(work()) == 200


def test_a_connection_that_is_closed_as_it_is_used_again_blames_nobody() -> None:
    async def work() -> Any:
        hangs_up = raw(b"")
        config = replace(QUICK, retries=0)
        async with gateway_over({"m": [[well, hangs_up, well, hangs_up]]}, config) as running:
            statuses = [(await running.ask()).status for _ in range(2)]
            backend = running.gateway.view().models[0].backends[0]
            assert (backend.num_requests, backend.num_errors) == (2, 0)
            # What is kept there must not be kept twice.
            with pytest.raises(BackendError, match="m/0 closed the connection"):
                await running.ask(store=True)
            return statuses, len(running.servers["m"][0].asked)

    assert run(work()) == ([200, 200], 4)
