"""Another model instead of one that cannot answer: always before the first word, later if declared.

Next: test_failover.py.
"""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from moestro.errors import BackendError
from moestro.gateway.config import BreakerConfig
from moestro.gateway.metrics import GatewayMetrics
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    Behavior,
    breaks,
    gateway_over,
    read_stream,
    replies,
    reset,
    well,
    whole_text,
)


async def _ask(*small: Behavior, model: str = "auto", **settings: Any) -> Any:
    behaviors: Any = {"weak": [list(small)], "strong": [well]}
    config = replace(QUICK, retries=1, **settings)
    async with gateway_over(behaviors, config, policy=ScriptedPolicy()) as running:
        return await running.stream(model=model), running


def test_before_the_first_byte_another_model_answers() -> None:
    data, running = run(_ask(replies(500)))
    assert read_stream(data)[0] == whole_text()
    record = running.records[0]
    assert record.model == "strong"
    assert record.reason == "gain 0.1 < 0.2; weak did not answer"
    assert record.num_attempts == 3


def test_a_name_is_not_answered_by_another_model() -> None:
    with pytest.raises(BackendError, match="weak/0 answered with status 500"):
        run(_ask(replies(500), model="weak"))


def test_before_the_first_word_another_model_begins_anew() -> None:
    data, running = run(_ask(breaks(1, reset), replies(500)))
    text, events = read_stream(data)
    assert text == whole_text()
    assert {event["id"] for event in events} == {"id-broken"}
    assert running.records[0].model == "strong"
    assert running.servers["strong"][0].asked[0].body["messages"][-1]["role"] == "user"


def test_after_it_another_model_does_not_go_on() -> None:
    data, running = run(_ask(breaks(5, reset), replies(500)))
    text, events = read_stream(data)
    assert text == whole_text(4)
    assert "error" in events[-1]
    assert not running.servers["strong"][0].asked


def test_unless_it_may_and_then_it_says_so() -> None:
    data, running = run(_ask(breaks(5, reset), replies(500), continues_across_models=True))
    text, events = read_stream(data)
    assert text == whole_text()
    assert b": moestro continued by strong\n\n" in data
    assert [event["model"] for event in events][4:6] == ["weak", "strong"]
    record = running.records[0]
    assert (record.model, record.num_failovers, record.outcome) == ("strong", 1, "answered")


def test_a_conversation_goes_back_to_the_model_whose_fault_it_was() -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [[well, replies(500), replies(500), well]], "strong": [well]}
        config = replace(QUICK, retries=1)
        async with gateway_over(behaviors, config, policy=ScriptedPolicy()) as running:
            for _ in range(3):
                await running.ask(model="auto")
            return [(record.model, record.reason) for record in running.records]

    assert run(work()) == [
        ("weak", "gain 0.1 < 0.2"),
        ("strong", "conversation; weak did not answer"),
        ("weak", "conversation"),
    ]


def test_a_conversation_leaves_a_model_alone_whose_breaker_is_open_and_then_goes_back() -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [[well, replies(500), well]], "strong": [well]}
        breaker = BreakerConfig(failures=1, open_s=1.0)
        config = replace(QUICK, retries=0, breaker=breaker)
        async with gateway_over(behaviors, config, policy=ScriptedPolicy()) as running:
            for wait_s in (0, 0, 0, 1.1):
                await asyncio.sleep(wait_s)
                await running.ask(model="auto")
            return [record.model for record in running.records], running

    models, running = run(work())
    assert models == ["weak", "strong", "strong", "weak"]
    assert len(running.servers["weak"][0].asked) == 3


def test_a_conversation_that_began_with_a_fault_is_decided_anew() -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [[replies(500), replies(500), well]], "strong": [well]}
        config = replace(QUICK, retries=1)
        async with gateway_over(behaviors, config, policy=ScriptedPolicy()) as running:
            for _ in range(2):
                await running.ask(model="auto")
            return [(record.model, record.reason) for record in running.records]

    assert run(work()) == [
        ("strong", "gain 0.1 < 0.2; weak did not answer"),
        ("weak", "gain 0.1 < 0.2"),
    ]


def test_a_conversation_stays_away_from_a_model_that_has_no_such_path() -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [replies(404)], "strong": [well]}
        async with gateway_over(behaviors, policy=ScriptedPolicy()) as running:
            for _ in range(2):
                await running.ask(model="auto")
            return [(record.model, record.reason) for record in running.records]

    seen = run(work())
    assert [model for model, _ in seen] == ["strong", "strong"]
    assert seen[1][1] == "conversation"


TOO_LONG = {"error": {"message": "at most 4096 tokens", "code": "context_length_exceeded"}}


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_a_small_model_refuses_the_next_one_answers(status: int) -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [replies(status, TOO_LONG)], "strong": [well]}
        async with gateway_over(behaviors, policy=ScriptedPolicy()) as running:
            texts = [read_stream(await running.stream(model="auto"))[0] for _ in range(2)]
            return texts, running

    texts, running = run(work())
    assert texts == [whole_text()] * 2
    first, second = running.records
    assert (first.model, first.outcome) == ("strong", "answered")
    assert first.reason == "gain 0.1 < 0.2; weak refused"
    # And the conversation stays with who could answer.
    assert (second.model, second.reason) == ("strong", "conversation")
    assert len(running.servers["weak"][0].asked) == 1


@pytest.mark.parametrize("last", [replies(400, TOO_LONG), replies(500)])
def test_a_refusal_is_told_where_nobody_answers_and_is_no_conversation(last: Behavior) -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [replies(400, TOO_LONG)], "strong": [last]}
        config = replace(QUICK, retries=0)
        async with gateway_over(behaviors, config, policy=ScriptedPolicy()) as running:
            return [await running.ask(model="auto") for _ in range(2)], running

    answers, running = run(work())
    assert [reply.status for reply in answers] == [400, 400]
    assert b"context_length_exceeded" in answers[0].body
    record = running.records[1]
    assert record.reason.startswith("gain 0.1 < 0.2; weak refused; strong ")
    assert (record.outcome, record.completion_tokens, record.cost_usd) == ("refused", 0, 0)
    view = running.gateway.view().models[0].backends[0]
    assert (view.num_errors, view.num_in_flight) == (0, 0)


def test_an_audit_costs_what_it_costs_and_is_no_request() -> None:
    registry = CollectorRegistry()

    async def work() -> Any:
        behaviors: Any = {"weak": [well], "strong": [[well, replies(500)]]}
        config = replace(QUICK, retries=0)
        around = {"metrics": GatewayMetrics(registry)}
        async with gateway_over(
            behaviors, config, policy=ScriptedPolicy(), around=around
        ) as running:
            await running.ask(model="auto")
            await running.ask(model="strong", is_audit=True)
            with pytest.raises(BackendError):
                await running.ask(model="strong", is_audit=True)
        return running

    running = run(work())
    assert [record.reason.partition(";")[0] for record in running.records[1:]] == ["audit"] * 2
    view = running.gateway.view()
    weak, strong = view.models
    assert (view.num_requests, weak.share, strong.num_requests, strong.num_errors) == (1, 1, 0, 0)
    assert strong.cost_usd == running.records[1].cost_usd > 0
    assert strong.latency.whole_p50_s is None
    shown = generate_latest(registry).decode()
    assert 'gateway_audits_total{model="strong",outcome="answered"} 1.0' in shown
    assert 'gateway_requests_total{backend="strong' not in shown
    assert 'gateway_tokens_total{kind="completion",model="strong"}' in shown


def test_shares_costs_and_counts_are_shown() -> None:
    _, running = run(_ask(well))
    weak, strong = running.gateway.view().models
    assert (weak.share, weak.num_auto, strong.num_requests) == (1, 1, 0)
    assert weak.cost_usd > 0
    assert weak.backends[0].latency.first_p50_s is not None
    assert weak.latency.whole_p95_s is not None
    assert running.gateway.view().strongest == "strong"
