"""What the heads of a fleet's answers say: who answers and why, whatever the endpoint.

Next: test_served.py, chained.py.
"""

from typing import Any

import httpx
import pytest

from tests.unit.gateway.chained import chain
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.test_remembering import ScriptedCache
from tests.unit.gateway.test_served import served
from tests.unit.gateway.upstreams import (
    Asking,
    answer_of,
    events_of,
    gateway_over,
    question,
    replies,
    well,
)

EXPERTS = "x-moestro-experts"
TURNS = [{"role": "user", "content": "say"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "say"},
    "/v1/chat/completions": {"messages": TURNS},
    "/v1/messages": {"messages": TURNS, "max_tokens": 9},
    "/v1/responses": {"input": "say"},
}


async def grants_fewer(asking: Asking) -> None:
    """Answer as a server of ours that grants fewer experts than the most."""
    granted = f"{EXPERTS}: 2.5"
    if not asking.body.get("stream"):
        await asking.whole(answer_of(asking.body), 200, granted)
        return
    await asking.head(200, "transfer-encoding: chunked", granted, kind="text/event-stream")
    for event in events_of(asking.body):
        await asking.chunk(event)
    await asking.end()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_experts_that_a_server_of_ours_granted_are_told(path: str, is_stream: bool) -> None:
    with chain(is_local=True) as link:
        body = BODIES[path] | {"model": "m", "stream": is_stream}
        fewer = httpx.post(link.root + path, json=body | {"experts": 2.5})
        most = httpx.post(link.root + path, json=body)
    assert (fewer.status_code, fewer.headers[EXPERTS]) == (200, "2.5")
    assert (most.status_code, EXPERTS in most.headers) == (200, False)


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_given_again_has_the_experts_that_it_was_made_with(is_stream: bool) -> None:
    async def work() -> Any:
        cache = ScriptedCache()
        async with gateway_over({"m": [grants_fewer]}, around={"cache": cache}) as running:
            found = []
            for _ in range(2):
                reply = await running.ask(temperature=0, stream=is_stream)
                if not isinstance(reply.body, bytes):
                    assert [piece async for piece in reply.body]
                found.append(reply.headers.get(EXPERTS))
            return found, len(running.servers["m"][0].asked)

    assert run(work()) == (["2.5", "2.5"], 1)


@pytest.mark.parametrize("value", ["many", "-1", "0", "inf", "nan", ""])
def test_a_number_of_experts_that_is_none_is_not_passed_on(value: str) -> None:
    body = answer_of(question("/v1/chat/completions"))

    async def work() -> Any:
        async with gateway_over({"m": [replies(200, body, f"{EXPERTS}: {value}")]}) as running:
            return (await running.ask()).headers

    assert EXPERTS not in run(work())


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_every_endpoint_says_who_answers_why_and_after_how_many_attempts(
    path: str, is_stream: bool
) -> None:
    async def work() -> Any:
        # It is asked again after its fault.
        behaviors = {"m": [[replies(500), well]]}
        async with served(behaviors) as (root, _), httpx.AsyncClient() as client:
            body = BODIES[path] | {"model": "m", "stream": is_stream}
            return await client.post(root + path, json=body)

    answer = run(work())
    said = {name: value for name, value in answer.headers.items() if name.startswith("x-moestro-")}
    assert said == {
        "x-moestro-model": "m",
        "x-moestro-backend": "m/0",
        "x-moestro-reason": "named",
        "x-moestro-attempts": "2",
    }


def test_a_response_that_was_kept_says_so() -> None:
    async def work() -> Any:
        around = {"cache": ScriptedCache()}
        async with served({"m": [well]}, around=around) as (root, _), httpx.AsyncClient() as client:
            body = BODIES["/v1/responses"] | {"model": "m", "temperature": 0}
            answers = [await client.post(f"{root}/v1/responses", json=body) for _ in range(2)]
            return [answer.headers for answer in answers]

    first, again = run(work())
    assert "x-moestro-cache" not in first
    assert (again["x-moestro-cache"], again["x-moestro-reason"]) == ("hit", "cache")
