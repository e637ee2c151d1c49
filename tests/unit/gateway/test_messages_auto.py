"""/v1/messages to those who speak it, by name or by `auto`: bytes and a header pass, else not.

Next: test_anthropic.py.
"""

import json
from dataclasses import replace
from typing import Any

import pytest

from moestro.api.relay import Call
from tests.unit.gateway import test_anthropic, upstreams
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import QUICK, Behavior, Running, gateway_over, replies

IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
TURN = {"role": "user", "content": [IMAGE, {"type": "text", "text": "easy"}]}
FIELDS = {"messages": [TURN], "max_tokens": 9, "tools": [{"type": "web_search_20250305"}]}


def speak_openai(running: Running, model: str) -> None:
    upstream = running.gateway._lines[model].members[0].upstream
    upstream.__dict__["config"] = replace(upstream.config, dialect="openai")


def test_auto_passes_on_what_the_chosen_model_takes_by_name() -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [test_anthropic.well], "strong": [test_anthropic.well]}
        settings: Any = {"policy": ScriptedPolicy(), "dialect": "anthropic"}
        async with gateway_over(behaviors, **settings) as running:
            return await running.ask("/v1/messages", model="auto", **FIELDS), running

    reply, running = run(work())
    assert json.loads(reply.body) == test_anthropic.MESSAGE
    assert reply.headers["x-moestro-model"] == "weak"
    assert running.servers["weak"][0].asked[0].body == FIELDS | {"model": "weak"}
    record = running.records[0]
    assert (record.asked, record.reason) == ("auto", "gain 0.1 < 0.2")


def test_what_a_client_says_in_a_header_of_the_dialect_goes_on_and_no_other() -> None:
    sent = {"anthropic-beta": "files-api-2025-04-14", "x-api-key": "client", "cookie": "a=b"}

    async def work() -> Any:
        async with gateway_over({"m": [test_anthropic.well]}, dialect="anthropic") as running:
            await running.ask("/v1/messages", headers=sent)
            await running.ask("/v1/messages", headers={"anthropic-beta": "\u00e9"})
            await running.ask(headers=sent)
            return [asking.headers for asking in running.servers["m"][0].asked]

    first, *others = run(work())
    assert first["anthropic-beta"] == sent["anthropic-beta"]
    assert not {"x-api-key", "cookie"} & set(first)
    assert all("anthropic-beta" not in headers for headers in others)


@pytest.mark.parametrize("word", ["easy", "hard"])
def test_auto_is_translated_where_the_chosen_model_speaks_openais(word: str) -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [upstreams.well], "strong": [test_anthropic.well]}
        settings: Any = {"policy": ScriptedPolicy(), "dialect": "anthropic"}
        async with gateway_over(behaviors, **settings) as running:
            speak_openai(running, "weak")
            turns = [{"role": "user", "content": word}]
            body = json.dumps({"model": "auto", "messages": turns, "max_tokens": 9}).encode()
            call = Call(path="/v1/messages", body=body, request_id="r")
            return await running.gateway.relay(call) is not None

    assert run(work()) is (word == "hard")


@pytest.mark.parametrize("fault", [replies(500), replies(400)])
def test_only_a_model_of_the_same_dialect_is_fallen_back_on(fault: Behavior) -> None:
    async def work() -> Any:
        behaviors: Any = {
            "weak": [fault],
            "strong": [upstreams.well],
            "strongest": [test_anthropic.well],
        }
        policy = ScriptedPolicy(models=tuple(behaviors), strongest="strongest")
        settings: Any = {"policy": policy, "dialect": "anthropic"}
        config = replace(QUICK, retries=0)
        async with gateway_over(behaviors, config, **settings) as running:
            speak_openai(running, "strong")
            return await running.ask("/v1/messages", model="auto", **FIELDS), running

    reply, running = run(work())
    assert reply.headers["x-moestro-model"] == "strongest"
    assert not running.servers["strong"][0].asked
