"""/tokenize and /detokenize through a gateway: tokens are those of the model's own server.

Next: test_count_tokens.py, chained.py.
"""

import json
from typing import Any

import httpx
import pytest

from moestro.errors import BackendError, ConfigError
from moestro.gateway.fleet import BackendConfig
from moestro.gateway.upstream import build_upstream
from tests.unit.gateway import test_anthropic, upstreams
from tests.unit.gateway.chained import chain
from tests.unit.gateway.test_books import NotingDoor
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.test_served import served
from tests.unit.gateway.upstreams import Asking, Behavior, gateway_over, replies

CUT, JOIN = "/tokenize", "/detokenize"
TURNS = [{"role": "user", "content": "how many experts?"}]
ASKS: dict[str, dict[str, Any]] = {CUT: {"prompt": "two"}, JOIN: {"tokens": [7, 8]}}
TOLD: dict[str, dict[str, Any]] = {
    CUT: {"count": 2, "max_model_len": 9, "tokens": [7, 8], "token_strs": None},
    JOIN: {"prompt": "two"},
}


async def tells(asking: Asking) -> None:
    if asking.path in TOLD:
        await asking.whole(TOLD[asking.path])
    else:
        await upstreams.well(asking)


@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize("asked", [{"prompt": "two experts"}, {"messages": TURNS}])
def test_a_fleet_tells_the_tokens_that_the_models_own_server_tells(
    is_local: bool, asked: dict[str, Any]
) -> None:
    body = asked | {"model": "m", "return_token_strs": True}
    with chain(is_local=is_local) as link:
        through, direct = (httpx.post(root + CUT, json=body) for root in (link.root, link.upstream))
        assert (through.status_code, through.content) == (200, direct.content)
        assert through.headers["x-moestro-backend"] == "m/0"
        back = {"model": "m", "tokens": through.json()["tokens"]}
        texts = [httpx.post(root + JOIN, json=back) for root in (link.root, link.upstream)]
        assert texts[0].content == texts[1].content
    [first, second] = link.records
    assert (first.path, second.path) == (CUT, JOIN)
    for record in link.records:
        assert (record.outcome, record.cost_usd, record.prompt_tokens) == ("answered", 0, 0)
        assert (record.is_estimated, record.first_s) == (False, None)


def test_what_the_models_own_server_refuses_is_told_in_its_words() -> None:
    with chain(is_local=True) as link:
        body = {"model": "m", "tokens": "two"}
        through, direct = (
            httpx.post(root + JOIN, json=body) for root in (link.root, link.upstream)
        )
    assert (through.status_code, through.json()) == (400, direct.json())


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://a/v1", b"/tokenize"),
        ("http://a/x/v1/", b"/x/tokenize"),
        ("http://a/api", b"/api/tokenize"),
        ("http://a", b"/tokenize"),
    ],
)
def test_the_paths_lie_beside_v1(url: str, place: bytes) -> None:
    upstream = build_upstream("m/0", "m", BackendConfig(url=url))
    assert upstream.request(b"POST", CUT, b"{}").split()[1] == place


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_backend_without_the_path_says_so_and_answers_on(
    status: int, path: str, dialect: str
) -> None:
    async def chats(asking: Asking) -> None:
        if asking.path == path:
            await asking.whole({"detail": "Not Found"}, status)
        else:
            await (upstreams if dialect == "openai" else test_anthropic).well(asking)

    async def work() -> Any:
        async with served({"m": [chats]}, dialect=dialect) as (root, running):
            async with httpx.AsyncClient() as client:
                body = ASKS[path] | {"model": "m"}
                refused = [await client.post(root + path, json=body) for _ in range(6)]
            (backend,) = running.gateway.view().models[0].backends
            return refused, backend.breaker, (await running.ask()).status

    refused, breaker, status_of_chat = run(work())
    assert {answer.status_code for answer in refused} == {400}
    assert f"m has no {path}, say its backends" in refused[0].json()["error"]["message"]
    assert (breaker, status_of_chat) == ("closed", 200)


@pytest.mark.parametrize(
    ("path", "said"),
    [(CUT, {"tokens": []}), (CUT, {"count": 1, "tokens": ["a"]}), (JOIN, {"content": ""})],
)
def test_a_server_that_has_the_path_for_other_fields_is_not_believed_and_answers_on(
    path: str, said: dict[str, Any]
) -> None:
    # llama.cpp looks for `content`, and cuts nothing into no tokens.
    async def chats(asking: Asking) -> None:
        await (asking.whole(said) if asking.path == path else upstreams.well(asking))

    async def work() -> Any:
        async with gateway_over({"m": [chats]}) as running:
            for _ in range(6):
                with pytest.raises(ConfigError, match=f"m has no {path}, say its backends"):
                    await running.ask(path, **ASKS[path])
            (backend,) = running.gateway.view().models[0].backends
            return backend.breaker, backend.trouble, (await running.ask()).status

    breaker, trouble, status = run(work())
    assert (breaker, status) == ("closed", 200)
    assert "in another form than vLLM" in trouble


@pytest.mark.parametrize("fault", [replies(500), replies(200, b"{"), upstreams.reset])
@pytest.mark.parametrize("path", ASKS)
def test_another_backend_tells_tokens_where_one_fails(fault: Behavior, path: str) -> None:
    async def work() -> Any:
        async with gateway_over({"m": [fault, tells]}) as running:
            return [json.loads((await running.ask(path, **ASKS[path])).body) for _ in range(4)]

    assert run(work()) == [TOLD[path]] * 4


def test_a_backend_that_fails_alone_is_a_fault_of_the_server() -> None:
    async def work() -> None:
        async with gateway_over({"m": [replies(200, b"{")]}) as running:
            with pytest.raises(BackendError, match="something else than JSON"):
                await running.ask(CUT, prompt="two")

    run(work())


def test_tokens_are_free_and_their_text_is_kept_like_any_other() -> None:
    async def work() -> Any:
        door = NotingDoor()
        async with gateway_over({"m": [tells]}, around={"door": door}) as running:
            for path, asked in ASKS.items():
                await running.ask(path, caller="alice", **asked)
        return door

    door = run(work())
    assert [(caller, model, answer) for caller, model, _, answer in door.admitted] == [
        ("alice", "m", None)
    ] * 2
    assert [texts for _, *texts in door.finished] == [["two", ""], ["", ""]]


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (CUT, {"model": "auto", "prompt": "a"}, "name the one whose tokens you want"),
        (JOIN, {"model": "auto", "tokens": [1]}, "name the one whose tokens you want"),
        (CUT, {}, "prompt is missing"),
        (CUT, {"messages": []}, "messages is missing"),
        (JOIN, {}, "tokens is missing"),
        (CUT, {"model": "", "prompt": "a"}, "model is missing"),
    ],
)
def test_a_mistake_is_told_before_anybody_is_asked(
    path: str, fields: dict[str, Any], message: str
) -> None:
    async def work() -> Any:
        policy = ScriptedPolicy(models=("m",), strongest="m")
        async with served({"m": [tells]}, policy=policy) as (root, running):
            async with httpx.AsyncClient() as client:
                answer = await client.post(root + path, json={"model": "m"} | fields)
            return answer, running.servers["m"][0].asked

    answer, asked = run(work())
    assert (answer.status_code, asked) == (400, [])
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ASKS)
def test_json_by_another_name_is_asked_for_by_its_own(path: str) -> None:
    async def work() -> Any:
        async with served({"m": [tells]}) as (root, _), httpx.AsyncClient() as client:
            body = json.dumps(ASKS[path] | {"model": "m"})
            headers = {"content-type": "application/vnd.x+json"}
            return await client.post(root + path, content=body, headers=headers)

    answer = run(work())
    assert answer.status_code == 400
    assert "send content-type application/json" in answer.json()["error"]["message"]
