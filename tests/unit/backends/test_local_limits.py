"""What a local backend refuses, frees, ends and counts."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from moestro.api.chat import Constraint, Tool, ToolChoice
from moestro.api.sampling import SamplingWish
from moestro.api.stats import ExpertStats
from moestro.engine.config import EngineConfig, QueueConfig
from moestro.engine.request import FailEvent
from moestro.engine.stats import EngineStats
from moestro.errors import (
    BackendError,
    CapacityError,
    ConfigError,
    DataError,
    MoestroError,
    UnknownModelError,
)
from moestro.model.config import BudgetConfig
from tests.unit.backends.local_parts import ask, build, chat, completion, read, text_of

FIXED = {"budget": BudgetConfig()}
TOOL = Tool(name="area", description="Area", parameters={"type": "object", "properties": {}})


def test_a_model_without_a_table_takes_all_its_experts_or_says_so() -> None:
    backend, engine = build("area", shape=FIXED)
    for experts in (None, 4, "auto"):
        ask(backend, completion(experts=experts))
    assert {request.experts for request in engine.requests} == {None}
    for experts in (3, "min"):
        with pytest.raises(ConfigError, match="no budget table"):
            ask(backend, completion(experts=experts))


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (completion(experts=1.5), ConfigError, "takes 2 to 4"),
        (completion(experts=float("nan")), ConfigError, "takes 2 to 4"),
        (completion("radius" * 1000), DataError, "maximum context length is 256"),
        (completion((1, 400)), DataError, "outside the vocabulary of 320"),
        (completion(()), DataError, "no tokens"),
        (completion("a", suffix="b", echo=True), ConfigError, "do not go together"),
        (completion((1,), suffix="b"), ConfigError, "needs a prompt in text"),
        (completion(model="other"), UnknownModelError, "choose tiny"),
        (completion(max_tokens=3, sampling=SamplingWish(min_tokens=4)), ConfigError, "min_tokens"),
        (chat(tool_choice=ToolChoice(mode="required")), DataError, "there are no tools"),
        (chat(tools=(TOOL,), tool_choice=ToolChoice(mode="named", name="x")), DataError, "area"),
        (
            chat(
                tools=(TOOL,),
                tool_choice=ToolChoice(mode="required"),
                constraint=Constraint(kind="json_object"),
            ),
            ConfigError,
            "do not go together",
        ),
        (chat(template_variables={"messages": []}), ConfigError, "messages cannot be set"),
    ],
)
def test_what_is_wrong_is_said_before_the_engine_hears_of_it(
    request_: Any, kind: type[MoestroError], message: str
) -> None:
    backend, engine = build("area")
    with pytest.raises(kind, match=message):
        ask(backend, request_)
    assert engine.requests == []
    assert backend.stats()[0].num_waiting == 0


def test_a_request_that_the_engine_refuses_fails_before_it_starts() -> None:
    backend, engine = build("area")
    for is_callers, kind in ((True, DataError), (False, BackendError)):
        engine.failure = FailEvent(request_id="", message="no", is_callers_fault=is_callers)
        with pytest.raises(kind, match="no"):
            ask(backend, completion())


def test_the_field_that_the_engine_finds_fault_with_is_named() -> None:
    backend, engine = build("area")
    engine.failure = FailEvent(
        request_id="", message="no", is_callers_fault=True, param="logit_bias"
    )
    with pytest.raises(DataError) as caught:
        ask(backend, completion())
    assert caught.value.param == "logit_bias"


def test_the_grammar_of_a_request_knows_the_field_that_it_came_from() -> None:
    backend, engine = build("area", template="{{ tools }}")
    format_ = Constraint(kind="json_object", param="response_format")
    for request in (
        chat(constraint=format_),
        chat(tools=(TOOL,), tool_choice=ToolChoice(mode="required")),
    ):
        ask(backend, request)
    grammars = [request.grammar for request in engine.requests]
    assert [grammar and grammar.param for grammar in grammars] == ["response_format", "tools"]


def test_a_reader_who_goes_away_frees_everything() -> None:
    async def claim() -> None:
        backend, engine = build("radius " * 8)
        stream = backend.stream(completion())
        await anext(stream)
        await anext(stream)
        assert backend.stats()[0].num_running == 1
        await stream.aclose()
        assert engine.aborted == [engine.requests[0].id]
        assert backend.stats()[0].num_running == 0

    asyncio.run(claim())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def claim() -> None:
        queue = QueueConfig(max_requests=2)
        backend, engine = build("radius", config=EngineConfig(max_batch=1, queue=queue))
        engine.is_held = True
        waiting = [asyncio.ensure_future(read(backend, completion())) for _ in range(3)]
        while len(engine.requests) < 3:
            await asyncio.sleep(0.001)
        began = time.perf_counter()
        with pytest.raises(CapacityError, match="3 requests are waiting, limit 3") as refused:
            await read(backend, completion("radius" * 100_000))
        assert time.perf_counter() - began < 0.05
        assert refused.value.retry_after_s >= 1
        assert backend.stats()[0].num_waiting == 3
        engine.is_held = False
        for answer in await asyncio.gather(*waiting):
            assert text_of(answer) == "radius"
        await read(backend, completion())

    asyncio.run(claim())


def test_a_long_prompt_leaves_the_loop_free() -> None:
    async def claim() -> None:
        backend, _ = build("radius", shape={"max_position_embeddings": 10_000_000})
        long = asyncio.ensure_future(read(backend, completion("radius * " * 100_000)))
        worst, start = 0.0, time.perf_counter()
        while not long.done():
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - began)
        await long
        # On a busy machine everything may take long, but not the loop as long as the prompt.
        assert worst < max(0.25, (time.perf_counter() - start) / 2)

    asyncio.run(claim())


def test_stopping_lets_answers_end_and_refuses_new_ones() -> None:
    async def claim() -> None:
        backend, engine = build("radius")
        engine.is_held = True
        answer = asyncio.ensure_future(read(backend, completion()))
        while not engine.requests:
            await asyncio.sleep(0.001)
        stopping = asyncio.ensure_future(backend.stop(5))
        await asyncio.sleep(0)
        assert backend.stats()[0].state == "draining"
        with pytest.raises(BackendError, match="shutting down"):
            await read(backend, completion())
        engine.is_held = False
        assert text_of(await answer) == "radius"
        await stopping
        assert backend.stats()[0].state == "stopped"

    asyncio.run(claim())


def test_a_deadline_ends_what_does_not() -> None:
    async def claim() -> None:
        backend, engine = build("radius")
        engine.is_held = True
        answer = asyncio.ensure_future(read(backend, completion()))
        while not engine.requests:
            await asyncio.sleep(0.001)
        await backend.stop(0.05)
        with pytest.raises(BackendError, match="the server stopped"):
            await answer

    asyncio.run(claim())


def test_counters_survive_the_engine_and_levels_do_not() -> None:
    before = EngineStats(
        prompt_tokens=10,
        generation_tokens=5,
        cache_usage=0.5,
        experts=ExpertStats(tokens_LE=((1, 2), (3, 4))),
    )
    backend, engine = build("radius", stats=before)
    assert backend.stats()[0].prompt_tokens == 10
    engine.stats, engine.restarts = None, 1
    stats = backend.stats()[0]
    assert (stats.prompt_tokens, stats.cache_usage, stats.engine_restarts) == (10, 0.0, 1)
    assert stats.experts.tokens_LE == ((1, 2), (3, 4))
    engine.stats = replace(before, prompt_tokens=1)
    stats = backend.stats()[0]
    assert (stats.prompt_tokens, stats.generation_tokens, stats.cache_usage) == (11, 10, 0.5)
    assert stats.experts.tokens_LE == ((2, 4), (6, 8))
