"""A fleet behind the real server: official clients, streams as bytes, clients that go away.

Next: test_faults.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest
import uvicorn

from moestro.gateway.translated import Translated
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.server.limits import ClientLimits, LimitsConfig
from tests.unit.gateway.test_choosing import ScriptedPermits, ScriptedPolicy, World, fleet
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    Asking,
    Running,
    breaks,
    endless,
    events_of,
    gateway_over,
    question,
    replies,
    reset,
    well,
    whole_text,
)

MESSAGES: list[Any] = [{"role": "user", "content": "say"}]


@asynccontextmanager
async def served(
    behaviors: dict[str, Any], config: ServerConfig | None = None, **settings: Any
) -> AsyncIterator[tuple[str, Running]]:
    async with gateway_over(behaviors, **settings) as running:
        app = build_app(
            Translated(running.gateway), config or ServerConfig(drain_s=0), relay=running.gateway
        )
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", running
        server.should_exit = True
        await serving


async def _ask_openai(root: str) -> tuple[str, str]:
    async with openai.AsyncOpenAI(base_url=f"{root}/v1", api_key="none") as client:
        whole = await client.chat.completions.create(model="m", messages=MESSAGES)
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        pieces = [piece.choices[0].delta.content or "" async for piece in stream]
        return whole.choices[0].message.content or "", "".join(pieces)


async def _ask_anthropic(root: str) -> tuple[str, str, int]:
    async with anthropic.AsyncAnthropic(base_url=root, api_key="none") as client:
        whole = await client.messages.create(model="m", messages=MESSAGES, max_tokens=99)
        async with client.messages.stream(model="m", messages=MESSAGES, max_tokens=99) as stream:
            text = await stream.get_final_text()
        return whole.content[0].text, text, whole.usage.output_tokens


def test_openais_client_gets_whole_and_streamed_answers() -> None:
    async def work() -> Any:
        async with served({"m": [well]}) as (root, _):
            return await _ask_openai(root)

    assert run(work()) == (whole_text(), whole_text())


def test_anthropics_client_is_answered_by_an_openai_backend_that_breaks() -> None:
    async def work() -> Any:
        async with served({"m": [[breaks(4, reset), well]]}) as (root, running):
            return await _ask_anthropic(root), running.records[0]

    answer, record = run(work())
    assert answer == (whole_text(), whole_text(), 12)
    assert record.num_failovers == 1


def test_a_stream_reaches_the_client_byte_by_byte_with_its_headers() -> None:
    async def work() -> Any:
        async with served({"m": [well]}) as (root, _), httpx.AsyncClient() as client:
            body = question("/v1/chat/completions") | {"stream": True}
            return await client.post(f"{root}/v1/chat/completions", json=body)

    response = run(work())
    assert response.content == b"".join(events_of(question("/v1/chat/completions")))
    assert response.headers["x-moestro-backend"] == "m/0"
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"]


def test_errors_have_openais_body() -> None:
    async def work() -> Any:
        found = []
        async with served({"m": [replies(500)]}) as (root, _), httpx.AsyncClient() as client:
            for body in (b"{", b"[]", b'{"model":"m"}', b'{"model":"x","prompt":"a"}'):
                headers = {"content-type": "application/json"}
                found.append(
                    await client.post(f"{root}/v1/completions", content=body, headers=headers)
                )
            body = question("/v1/completions")
            found.append(await client.post(f"{root}/v1/completions", json=body))
            return found

    responses = run(work())
    assert [response.status_code for response in responses] == [400, 400, 400, 404, 503]
    assert all(response.json()["error"]["message"] for response in responses)


@pytest.mark.parametrize(
    ("lengths", "length"),
    [
        ({"weak": 512, "strong": 4096}, 4096),
        ({"weak": 512}, 0),
        ({"a": 9, "weak": 5, "strong": 7}, 7),
    ],
)
def test_auto_reads_as_much_as_the_longest_model_that_it_chooses(
    lengths: dict[str, int], length: int
) -> None:
    # It said 0, as if nothing would fit; that is left for where it is not known of all.
    models = fleet(lengths=lengths)
    gateway: Any = SimpleNamespace(fleet=models, chooser=World(fleet=models).chooser)
    auto = Translated(gateway).cards()[0]
    assert (auto.id, auto.context_length) == ("auto", length)


def test_models_are_listed_with_prices() -> None:
    async def work() -> Any:
        async with served({"m": [well], "n": [well]}) as (root, _), httpx.AsyncClient() as client:
            models = (await client.get(f"{root}/v1/models")).json()["data"]
            return models, (await client.get(f"{root}/ready")).status_code

    models, status = run(work())
    assert [model["id"] for model in models] == ["m", "n"]
    assert models[0]["output_usd_per_mtok"] == 2
    assert status == 200


def test_a_client_that_goes_away_ends_the_backends_work() -> None:
    async def silent(asking: Asking) -> None:
        await asyncio.Event().wait()

    async def work() -> Any:
        async with served({"m": [endless], "n": [silent]}) as (root, running):
            async with httpx.AsyncClient() as client:
                body = question("/v1/completions") | {"stream": True}
                async with client.stream("POST", f"{root}/v1/completions", json=body) as response:
                    await anext(response.aiter_bytes())
            await running.servers["m"][0].asked[0].is_gone.wait()
            async with httpx.AsyncClient(timeout=0.3) as client:
                body = question("/v1/completions") | {"model": "n"}
                with pytest.raises(httpx.ReadTimeout):
                    await client.post(f"{root}/v1/completions", json=body)
            while len(running.records) < 2:
                await asyncio.sleep(0.01)
            return running

    assert [record.outcome for record in run(work()).records] == ["left", "left"]


def test_tokens_relayed_count_against_a_clients_limit() -> None:
    limits = LimitsConfig(each=ClientLimits(tokens_per_minute=10))

    async def work() -> Any:
        config = ServerConfig(drain_s=0, limits=limits)
        async with served({"m": [well]}, config) as (root, _), httpx.AsyncClient() as client:
            body = question("/v1/completions") | {"stream": True}
            first = await client.post(f"{root}/v1/completions", json=body)
            second = await client.post(f"{root}/v1/completions", json=body)
            return first.status_code, second.status_code, json.loads(second.content)

    first, second, said = run(work())
    assert (first, second) == (200, 429)
    assert said["error"]["code"] == "rate_limit_exceeded"


def test_a_caller_sees_the_models_that_it_may_name() -> None:
    async def work() -> Any:
        settings = {
            "policy": ScriptedPolicy(),
            "around": {"permits": ScriptedPermits(["weak"])},
        }
        behaviors = {"weak": [well], "strong": [well]}
        async with (
            served(behaviors, **settings) as (root, _),
            httpx.AsyncClient(base_url=root) as client,
        ):
            listed = await client.get("/v1/models")
            shown = [await client.get(f"/v1/models/{name}") for name in ("weak", "strong")]
        return [card["id"] for card in listed.json()["data"]], [each.status_code for each in shown]

    assert run(work()) == (["auto", "weak"], [200, 404])
