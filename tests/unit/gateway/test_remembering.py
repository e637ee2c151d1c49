"""An answer given again: the same bytes, no backend asked, no cost; and what is not kept.

Next: test_open.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from moestro.gateway.books import Finished
from moestro.gateway.metrics import GatewayMetrics
from moestro.gateway.remembering import Kept
from tests.unit.gateway import test_anthropic
from tests.unit.gateway.test_books import NotingDoor
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    breaks,
    gateway_over,
    replies,
    reset,
    well,
)

CHAT = "/v1/chat/completions"


class ScriptedCache:
    """Keeps answers to what has a temperature of 0, by caller, model and body."""

    max_answer_bytes = 100_000

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}

    def name(
        self, path: str, body: Mapping[str, Any], model: str, caller: str | None
    ) -> str | None:
        if body.get("temperature") != 0:
            return None
        return repr((path, sorted(body.items(), key=str), model, caller))

    async def find(self, name: str) -> Kept | None:
        found = self.kept.get(name)
        if found is None:
            return None
        return replace(found, headers={**found.headers, "x-moestro-cache": "hit"})

    def keep(self, name: str, kept: Kept) -> None:
        self.kept[name] = kept


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_whole_answer_is_given_again_without_asking_anybody(path: str) -> None:
    async def work() -> None:
        async with gateway_over({"m": [well]}, around={"cache": ScriptedCache()}) as running:
            first = await running.ask(path, temperature=0)
            again = await running.ask(path, temperature=0)
            assert again.body == first.body
            assert again.headers["content-type"] == first.headers["content-type"]
            assert "x-moestro-cache" not in first.headers
            assert again.headers["x-moestro-cache"] == "hit"
            assert again.headers["x-moestro-reason"] == "cache"
            assert len(running.servers["m"][0].asked) == 1
            one, other = running.records
            assert one.cost_usd > 0
            assert (other.reason, other.model, other.backend) == ("cache", "m", "")
            assert (other.cost_usd, other.prompt_tokens, other.completion_tokens) == (0, 0, 0)
            assert (other.outcome, other.num_attempts) == ("answered", 0)
            assert not other.is_estimated
            assert again.spent.completion_tokens == 0
            assert running.gateway.num_open == 0

    run(work())


def test_the_door_hears_that_an_answer_given_again_is_free() -> None:
    async def work() -> list[bool]:
        door = NotingDoor()
        around = {"cache": ScriptedCache(), "door": door}
        async with gateway_over({"m": [well]}, around=around) as running:
            await running.ask(temperature=0)
            await running.ask(temperature=0)
            await running.ask(temperature=1)
        return [answer is None for *_, answer in door.admitted]

    assert run(work()) == [False, True, False]


def test_a_stream_is_given_again_as_the_same_bytes() -> None:
    async def work() -> None:
        async with gateway_over({"m": [well]}, around={"cache": ScriptedCache()}) as running:
            first = await running.stream(temperature=0)
            reply = await running.ask(temperature=0, stream=True)
            assert not isinstance(reply.body, bytes)
            assert b"".join([piece async for piece in reply.body]) == first
            assert reply.headers["content-type"].startswith("text/event-stream")
            assert reply.headers["cache-control"] == "no-store"
            assert len(running.servers["m"][0].asked) == 1
            assert running.records[1].is_streamed
            assert running.gateway.num_open == 0

    run(work())


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0, "store": True}, {"temperature": 1}],
    ids=["nothing said", "stored elsewhere", "warm"],
)
def test_what_may_differ_is_asked_again(fields: dict[str, Any]) -> None:
    async def work() -> int:
        async with gateway_over({"m": [well]}, around={"cache": ScriptedCache()}) as running:
            await running.ask(**fields)
            await running.ask(**fields)
            return len(running.servers["m"][0].asked)

    assert run(work()) == 2


def test_what_a_header_switches_on_is_another_question() -> None:
    async def work() -> int:
        cache: Any = ScriptedCache()
        behaviors: Any = {"m": [test_anthropic.well]}
        kept: Any = {"around": {"cache": cache}, "dialect": "anthropic"}
        async with gateway_over(behaviors, **kept) as running:
            for beta in ("a", "b", "b"):
                fields = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
                headers = {"anthropic-beta": beta}
                await running.ask("/v1/messages", temperature=0, headers=headers, **fields)
            return len(running.servers["m"][0].asked)

    assert run(work()) == 2


def test_whole_and_streamed_answers_and_callers_are_told_apart() -> None:
    async def work() -> int:
        cache = ScriptedCache()
        async with gateway_over({"m": [well]}, around={"cache": cache}) as running:
            await running.ask(temperature=0)
            await running.stream(temperature=0)
            await running.ask(temperature=0, caller="somebody")
        return len(cache.kept)

    assert run(work()) == 3


@pytest.mark.parametrize(
    "row",
    [[breaks(5, reset), well], [replies(400, {"error": {"message": "no"}})]],
    ids=["continued elsewhere", "refused"],
)
def test_what_did_not_come_whole_from_one_backend_is_not_kept(row: Any) -> None:
    async def work() -> None:
        cache = ScriptedCache()
        async with gateway_over({"m": [row]}, around={"cache": cache}) as running:
            reply = await running.ask(temperature=0, stream=True)
            if not isinstance(reply.body, bytes):
                assert [piece async for piece in reply.body]
        assert not cache.kept

    run(work())


def test_a_stream_that_its_client_leaves_is_not_kept() -> None:
    async def work() -> None:
        cache = ScriptedCache()
        async with gateway_over({"m": [well]}, around={"cache": cache}) as running:
            reply = await running.ask(temperature=0, stream=True)
            assert not isinstance(reply.body, bytes)
            await anext(reply.body)
            await reply.body.aclose()
            assert running.records[0].outcome == "left"
        assert not cache.kept

    run(work())


def test_another_models_answer_is_not_kept_as_this_ones() -> None:
    async def work() -> None:
        cache = ScriptedCache()
        behaviors: Any = {"weak": [replies(500)], "strong": [well]}
        config = replace(QUICK, retries=0)
        around = {"cache": cache}
        async with gateway_over(
            behaviors, config, policy=ScriptedPolicy(), around=around
        ) as running:
            await running.ask(model="auto", temperature=0)
            assert running.records[0].model == "strong"
        assert not cache.kept

    run(work())


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_that_is_too_long_is_not_kept(is_stream: bool) -> None:
    async def work() -> None:
        cache = ScriptedCache()
        cache.max_answer_bytes = 200
        async with gateway_over({"m": [well]}, around={"cache": cache}) as running:
            await (running.stream if is_stream else running.ask)(temperature=0)
        assert not cache.kept

    run(work())


def test_an_answer_given_again_is_audited_once_and_counted_as_cache() -> None:
    registry = CollectorRegistry()
    told: list[Finished] = []

    async def work() -> None:
        around: dict[str, Any] = {
            "cache": ScriptedCache(),
            "after": (told.append,),
            "metrics": GatewayMetrics(registry),
        }
        behaviors: Any = {"weak": [well], "strong": [well]}
        async with gateway_over(behaviors, policy=ScriptedPolicy(), around=around) as running:
            # Another conversation each time: the policy decides both.
            for name in "ab":
                headers = {"x-moestro-conversation": name}
                await running.ask(model="auto", temperature=0, headers=headers)
            assert [record.reason for record in running.records][1] == "cache"

    run(work())
    assert [finished.record.reason for finished in told] == ["gain 0.1 < 0.2"]
    labels = {"model": "weak", "backend": "", "outcome": "answered", "status": "200"}
    name = "moestro:gateway_requests_total"
    assert registry.get_sample_value(name, {**labels, "reason": "cache"}) == 1
