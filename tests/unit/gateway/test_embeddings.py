"""/v1/embeddings through a gateway: bytes pass both ways, and books are kept as of any request.

Next: test_served.py, chained.py.
"""

import base64
import json
import struct
from typing import Any

import httpx
import openai
import pytest

from moestro.errors import BackendError, ConfigError
from moestro.gateway.books import AnswerBound
from moestro.gateway.fleet import Price
from moestro.server.config import ServerConfig
from moestro.server.limits import ClientLimits, LimitsConfig
from tests.unit.gateway import test_anthropic, upstreams
from tests.unit.gateway.chained import chain
from tests.unit.gateway.test_books import NotingDoor
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.test_served import served
from tests.unit.gateway.upstreams import Asking, Behavior, gateway_over, replies

PATH = "/v1/embeddings"
VECTOR = [0.5, -1.25, 3.0]


async def embeds(asking: Asking) -> None:
    """Embed as OpenAI's server does: numbers, or their bytes where those are asked for."""
    if asking.path != PATH:
        await upstreams.well(asking)
        return
    texts = asking.body["input"]
    texts = [texts] if isinstance(texts, str) else texts
    vector: Any = VECTOR
    if asking.body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
    data = [
        {"object": "embedding", "index": number, "embedding": vector}
        for number, _ in enumerate(texts)
    ]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    model = asking.body["model"]
    await asking.whole({"object": "list", "data": data, "model": model, "usage": usage})


async def embed_at(root: str, **fields: Any) -> Any:
    async with openai.AsyncOpenAI(base_url=f"{root}/v1", api_key="-", max_retries=0) as client:
        return await client.embeddings.create(**{"model": "m", "input": ["a", "b"]} | fields)


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}])
def test_openais_client_gets_embeddings(form: dict[str, str]) -> None:
    async def work() -> Any:
        async with served({"m": [embeds]}, model="embed-3") as (root, running):
            return await embed_at(root, **form), running

    answer, running = run(work())
    assert [each.embedding for each in answer.data] == [VECTOR, VECTOR]
    assert answer.usage.prompt_tokens == 7
    [asking] = running.servers["m"][0].asked
    # The client asks for bytes unless it is told otherwise.
    form = form or {"encoding_format": "base64"}
    assert asking.body == {"model": "embed-3", "input": ["a", "b"]} | form


def test_a_request_costs_its_prompt_and_is_compared_with_nobody() -> None:
    async def work() -> Any:
        policy = ScriptedPolicy(models=("n", "strong"), strongest="strong")
        behaviors: Any = {"m": [embeds], "n": [embeds], "strong": [embeds]}
        async with gateway_over(behaviors, policy=policy) as running:
            await running.ask(PATH, input="say", caller="alice")
            return running.records

    [record] = run(work())
    assert (record.path, record.caller, record.model) == (PATH, "alice", "m")
    assert (record.prompt_tokens, record.completion_tokens) == (7, 0)
    assert (record.cost_usd, record.strongest_cost_usd) == (pytest.approx(7e-6), None)
    assert not record.is_estimated
    assert record.first_s is None


def test_what_came_goes_on_byte_by_byte() -> None:
    question = b'{ "input" : [1, 2.0], "model":"m", "user" : "\xc3\xa9", "dimensions":1e1 }'
    answer = b'{ "data" : [ {"embedding":[1.0e0]} ] }'

    async def work() -> Any:
        async with served({"m": [replies(200, answer)]}) as (root, running):
            async with httpx.AsyncClient() as client:
                headers = {"content-type": "application/json"}
                said = await client.post(f"{root}{PATH}", content=question, headers=headers)
            return said, running

    said, running = run(work())
    assert said.content == answer
    assert said.headers["x-moestro-backend"] == "m/0"
    assert running.servers["m"][0].asked[0].data == question
    assert running.records[0].is_estimated


@pytest.mark.parametrize(
    "fault",
    [replies(500), replies(429), replies(200, b"{"), replies(200, b"{}"), upstreams.reset],
)
def test_another_backend_embeds_where_one_fails(fault: Behavior) -> None:
    async def work() -> Any:
        async with gateway_over({"m": [fault, embeds]}) as running:
            replied = [await running.ask(PATH, input="say") for _ in range(4)]
            return [(reply.status, reply.headers["x-moestro-backend"]) for reply in replied]

    assert run(work()) == [(200, "m/1")] * 4


def test_no_backend_that_answers_with_something_else_is_believed() -> None:
    async def work() -> None:
        async with gateway_over({"m": [upstreams.well]}) as running:
            with pytest.raises(BackendError, match="something else than embeddings"):
                await running.ask(PATH, input="say")

    run(work())


def test_a_key_is_asked_for_the_prompt_alone() -> None:
    async def work() -> Any:
        door = NotingDoor()
        async with gateway_over({"m": [embeds]}, around={"door": door}) as running:
            await running.ask(PATH, input="say " * 100, caller="alice")
        return door

    door = run(work())
    [(caller, model, num_prompt, answer)] = door.admitted
    assert (caller, model) == ("alice", "m")
    assert num_prompt > 100
    price = Price(input_usd_per_mtok=1, output_usd_per_mtok=2)
    assert answer == AnswerBound(max_tokens=0, price=price)
    assert door.finished[0][1:] == ("say " * 100, "")


def test_requests_count_against_a_clients_limit() -> None:
    limits = LimitsConfig(each=ClientLimits(requests_per_minute=1))

    async def work() -> None:
        config = ServerConfig(drain_s=0, limits=limits)
        async with served({"m": [embeds]}, config) as (root, _):
            await embed_at(root)
            with pytest.raises(openai.RateLimitError):
                await embed_at(root)

    run(work())


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_backend_that_embeds_nothing_says_so_and_answers_on(status: int) -> None:
    async def chats(asking: Asking) -> None:
        if asking.path == PATH:
            await asking.whole({"error": {"message": "not supported"}}, status)
        else:
            await upstreams.well(asking)

    async def work() -> Any:
        async with served({"m": [chats]}) as (root, running):
            for _ in range(6):
                with pytest.raises(openai.BadRequestError, match="m has no /v1/embeddings"):
                    await embed_at(root)
            (backend,) = running.gateway.view().models[0].backends
            return backend.breaker, (await running.ask()).status

    assert run(work()) == ("closed", 200)


def test_a_stream_is_none_of_embeddings() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [embeds]}) as running:
            reply = await running.ask(PATH, input="say", stream=True)
            return json.loads(reply.body)["data"][0]["embedding"], running.records[0].is_streamed

    assert run(work()) == (VECTOR, False)


@pytest.mark.parametrize("is_local", [True, False])
def test_a_model_that_writes_text_refuses_at_the_gateway_and_at_its_own_server(
    is_local: bool,
) -> None:
    def ask(root: str, model: str) -> None:
        with openai.OpenAI(base_url=f"{root}/v1", api_key="-", max_retries=0) as client:
            client.embeddings.create(model=model, input="a")

    with chain(is_local=is_local) as link:
        for root in (link.root, link.upstream):
            with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
                ask(root, "m")
            with pytest.raises(openai.NotFoundError, match="'x' is not served here"):
                ask(root, "x")
    # Of its own child a gateway knows that without asking.
    assert [record.num_attempts for record in link.records] == [0 if is_local else 1, 0]


def test_anthropics_backends_embed_nothing() -> None:
    async def work() -> Any:
        behaviors: Any = {"m": [test_anthropic.well]}
        async with gateway_over(behaviors, dialect="anthropic") as running:
            with pytest.raises(ConfigError, match="m/0 makes no embeddings"):
                await running.ask(PATH, input="say")
            return running.servers["m"][0].asked

    assert run(work()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "auto", "input": "a"}, "auto chooses among models that talk"),
        ({}, "input is missing"),
    ],
)
def test_a_mistake_is_told_before_anybody_is_asked(fields: dict[str, Any], message: str) -> None:
    async def work() -> Any:
        policy = ScriptedPolicy(models=("m",), strongest="m")
        async with gateway_over({"m": [embeds]}, policy=policy) as running:
            with pytest.raises(ConfigError, match=message):
                await running.ask(PATH, **fields)
            return running.servers["m"][0].asked

    assert run(work()) == []
