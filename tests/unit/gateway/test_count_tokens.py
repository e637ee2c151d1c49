"""/v1/messages/count_tokens through a gateway: whoever knows the model's tokens counts them.

Next: test_served.py, chained.py.
"""

import json
from typing import Any

import anthropic
import pytest

from moestro.errors import BackendError, ConfigError
from tests.unit.gateway import test_anthropic, upstreams
from tests.unit.gateway.chained import chain
from tests.unit.gateway.test_books import NotingDoor
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.test_messages_auto import speak_openai
from tests.unit.gateway.test_served import served
from tests.unit.gateway.upstreams import Asking, Behavior, Running, gateway_over, replies

PATH = "/v1/messages/count_tokens"
COUNT = {"input_tokens": 14, "context_management": None}
ASK: Any = {
    "model": "m",
    "system": "be brief",
    "messages": [{"role": "user", "content": "how many experts?"}],
}


async def counts(asking: Asking) -> None:
    if asking.path == PATH:
        await asking.whole(COUNT)
    else:
        await test_anthropic.well(asking)


async def count_at(root: str, **fields: Any) -> int:
    async with anthropic.AsyncAnthropic(base_url=root, api_key="-", max_retries=0) as client:
        return (await client.messages.count_tokens(**ASK | fields)).input_tokens


@pytest.mark.parametrize("is_local", [True, False])
def test_a_server_of_ours_counts_what_it_then_reads(is_local: bool) -> None:
    with (
        chain(is_local=is_local) as link,
        anthropic.Anthropic(base_url=link.root, api_key="-", max_retries=0) as client,
        anthropic.Anthropic(base_url=link.upstream, api_key="-", max_retries=0) as direct,
    ):
        counted = client.messages.count_tokens(**ASK).input_tokens
        assert direct.messages.create(**ASK, max_tokens=2).usage.input_tokens == counted > 0


def test_anthropics_backend_is_asked_in_the_clients_own_words() -> None:
    fields = {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}
    sent = {"anthropic-beta": "token-counting-2024-11-01"}

    async def work() -> Any:
        async with served({"m": [counts]}, dialect="anthropic", model="claude") as (root, running):
            counted = await count_at(root, **fields, extra_headers=sent)
            return counted, running.servers["m"][0].asked, running.records

    counted, (asking,), (record,) = run(work())
    assert counted == 14
    assert asking.path == PATH
    assert asking.body == ASK | fields | {"model": "claude"}
    assert asking.headers["anthropic-beta"] == sent["anthropic-beta"]
    assert (record.path, record.outcome, record.model) == (PATH, "answered", "m")
    assert (record.prompt_tokens, record.cost_usd, record.is_estimated) == (0, 0.0, False)
    assert record.first_s is None


def test_an_answer_goes_on_as_it_came() -> None:
    async def work() -> Any:
        body = b'{ "input_tokens" : 14, "more": 1.0 }'
        async with gateway_over({"m": [replies(200, body)]}) as running:
            return (await running.ask(PATH)).body == body

    assert run(work())


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_backend_that_counts_none_says_so_and_answers_on(status: int) -> None:
    async def chats(asking: Asking) -> None:
        if asking.path == PATH:
            await asking.whole({"detail": "Not Found"}, status)
        else:
            await upstreams.well(asking)

    async def work() -> Any:
        async with served({"m": [chats]}) as (root, running):
            for _ in range(6):
                with pytest.raises(anthropic.BadRequestError) as refused:
                    await count_at(root)
            (backend,) = running.gateway.view().models[0].backends
            return refused.value, backend, (await running.ask()).status

    refused, backend, status_of_chat = run(work())
    assert refused.type == "invalid_request_error"
    assert "m has no /v1/messages/count_tokens, say its backends" in refused.message
    assert (backend.breaker, status_of_chat) == ("closed", 200)


@pytest.mark.parametrize(
    "fault", [replies(500), replies(200, b"{"), replies(200, b"{}"), upstreams.reset]
)
def test_another_backend_counts_where_one_fails(fault: Behavior) -> None:
    async def work() -> Any:
        async with gateway_over({"m": [fault, counts]}) as running:
            return [json.loads((await running.ask(PATH)).body) for _ in range(4)]

    assert run(work()) == [COUNT] * 4


def test_a_count_that_is_none_is_not_passed_on() -> None:
    async def work() -> None:
        async with gateway_over({"m": [replies(200, {"tokens": []})]}) as running:
            with pytest.raises(BackendError, match="something else than a count"):
                await running.ask(PATH)

    run(work())


def test_a_refusal_in_openais_words_is_told_in_anthropics() -> None:
    async def work() -> Any:
        error = {"error": {"message": "prompt is too long", "type": "x", "code": 400}}
        async with gateway_over({"m": [replies(400, error)]}) as running:
            reply = await running.ask(PATH)
            return reply.status, json.loads(reply.body)

    status, said = run(work())
    assert status == 400
    assert (said["type"], said["error"]["type"]) == ("error", "invalid_request_error")
    assert said["error"]["message"] == "m/0 refused the request: prompt is too long"


def test_a_count_is_free() -> None:
    async def work() -> Any:
        door = NotingDoor()
        async with gateway_over({"m": [counts]}, around={"door": door}) as running:
            await running.ask(PATH, caller="alice")
        return door.admitted

    [(caller, model, _, answer)] = run(work())
    assert (caller, model, answer) == ("alice", "m", None)


def test_auto_counts_for_the_model_that_it_would_choose_and_settles_nothing() -> None:
    async def ask(running: Running, word: str, path: str) -> str:
        turns = [{"role": "user", "content": word}, {"role": "assistant", "content": "-"}]
        turns.append({"role": "user", "content": "go on"})
        reply = await running.ask(path, model="auto", messages=turns)
        return reply.headers["x-moestro-model"], reply.headers["x-moestro-reason"]

    async def work() -> Any:
        behaviors: Any = {"weak": [counts], "strong": [counts]}
        settings: Any = {"policy": ScriptedPolicy(), "dialect": "anthropic"}
        async with gateway_over(behaviors, **settings) as running:
            speak_openai(running, "weak")
            found = [await ask(running, word, PATH) for word in ("hard", "easy", "hard")]
            return [*found, await ask(running, "hard", "/v1/messages")]

    *found, answered = run(work())
    assert [model for model, _ in found] == ["strong", "weak", "strong"]
    assert "conversation" not in [reason for _, reason in (*found, answered)]


@pytest.mark.parametrize(
    ("body", "message"),
    [({"messages": []}, "messages is missing"), ({"model": "auto"}, "auto needs a policy")],
)
def test_a_mistake_is_told_before_anybody_is_asked(body: dict[str, Any], message: str) -> None:
    async def work() -> Any:
        async with gateway_over({"m": [counts]}) as running:
            with pytest.raises(ConfigError, match=message):
                await running.ask(PATH, **body)
            return running.servers["m"][0].asked

    assert run(work()) == []
