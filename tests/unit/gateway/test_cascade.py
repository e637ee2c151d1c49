"""A small model's answer is kept or not by its own log-probabilities, which nobody else sees."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.unit.gateway.test_books import NotingDoor
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    WORDS,
    Asking,
    Behavior,
    answer_of,
    breaks,
    events_of,
    gateway_over,
    read_stream,
    replies,
    reset,
    well,
    whole_text,
)


@dataclass
class Above:
    """Keeps what is on average above a limit."""

    limit: float = -1.0
    reads_whole: bool = False

    def accepts(self, answer: str, logprobs: Sequence[float]) -> bool:
        return sum(logprobs) / len(logprobs) > self.limit


@dataclass
class Says:
    """Keeps an answer whose text ends as it should, and writes down what it was shown."""

    ending: str
    reads_whole: bool = True
    shown: list[tuple[str, Sequence[float]]] = field(default_factory=list)

    def accepts(self, answer: str, logprobs: Sequence[float]) -> bool:
        self.shown.append((answer, logprobs))
        return answer.endswith(self.ending)


def says(logprob: float) -> Behavior:
    """Answer as one should, with this log-probability for every token, if it was asked for."""

    async def behave(asking: Asking) -> None:
        wanted = asking.body.get("logprobs")
        entry = {"content": [{"token": "w", "logprob": logprob}]}
        if not asking.body.get("stream"):
            answer = answer_of(asking.body)
            answer["choices"][0]["logprobs"] = entry if wanted else None
            await asking.whole(answer)
            return
        written = []
        for event in events_of(asking.body):
            if wanted and b"content" in event and b"role" not in event:
                said = json.loads(event[6:])
                said["choices"][0]["logprobs"] = entry
                event = b"data: " + json.dumps(said).encode() + b"\n\n"
            written.append(event)
        await asking.events(written)
        await asking.end()

    return behave


async def _ask(small: Any, *, is_stream: bool, rule: Any = None, **fields: Any) -> tuple[Any, Any]:
    policy = ScriptedPolicy(cascade=rule or Above())
    behaviors = {"weak": [small], "strong": [well]}
    async with gateway_over(behaviors, policy=policy) as running:
        if is_stream:
            data = await running.stream(model="auto", **fields)
            return data, running
        return (await running.ask(model="auto", **fields)).body, running


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_is_sure_is_kept_and_shows_no_logprobs(is_stream: bool) -> None:
    data, running = run(_ask(says(-0.1), is_stream=is_stream))
    assert b"logprob" not in data
    record = running.records[0]
    assert (record.model, record.reason, record.wasted_tokens) == ("weak", "cascade: kept", 0)
    assert not running.servers["strong"][0].asked
    if is_stream:
        assert read_stream(data)[0] == whole_text()


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_is_not_sure_is_asked_of_the_stronger(is_stream: bool) -> None:
    data, running = run(_ask(says(-3), is_stream=is_stream))
    record = running.records[0]
    assert (record.model, record.reason) == ("strong", "cascade: not sure enough")
    assert record.wasted_tokens > 0
    assert record.cost_usd > record.strongest_cost_usd
    if is_stream:
        assert read_stream(data)[0] == whole_text()
        assert b"logprob" not in data


def test_what_a_cascade_may_cost_is_held_of_a_budget() -> None:
    async def work() -> Any:
        door = NotingDoor()
        policy = ScriptedPolicy(cascade=Above())
        behaviors: Any = {"weak": [says(-3)], "strong": [well]}
        around = {"door": door}
        async with gateway_over(behaviors, policy=policy, around=around) as running:
            # As many as the servers' answers have.
            await running.ask(model="auto", max_tokens=WORDS)
            await running.ask(model="strong", max_tokens=WORDS)
        return door.admitted, running.records

    admitted, records = run(work())
    assert records[0].wasted_tokens == WORDS
    for (_, _, num_prompt, bound), record in zip(admitted, records, strict=True):
        assert record.cost_usd <= bound.price.cost_usd(num_prompt, bound.max_tokens)
    assert [bound.price.output_usd_per_mtok for *_, bound in admitted] == [4, 2]


@pytest.mark.parametrize("strong", [replies(500), replies(503, b"", "retry-after: 60")])
@pytest.mark.parametrize("is_stream", [False, True])
def test_one_that_was_not_sure_answers_where_nobody_else_does(
    strong: Behavior, is_stream: bool
) -> None:
    async def work() -> Any:
        policy = ScriptedPolicy(cascade=Above())
        behaviors: Any = {"weak": [says(-3)], "strong": [strong]}
        async with gateway_over(behaviors, policy=policy) as running:
            if is_stream:
                return await running.stream(model="auto"), running
            return (await running.ask(model="auto")).body, running

    data, running = run(work())
    record = running.records[0]
    assert (record.outcome, record.model) == ("answered", "weak")
    assert record.reason == "cascade: not sure enough; strong did not answer"
    assert record.wasted_tokens > 0
    assert b'"logprob"' not in data
    if is_stream:
        assert read_stream(data)[0] == whole_text()


@pytest.mark.parametrize(
    "small",
    [replies(500), replies(400), [breaks(3, reset), replies(500)], well],
    ids=["500", "refuses", "breaks", "none"],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_who_says_nothing_of_itself_is_not_kept(small: Any, is_stream: bool) -> None:
    _, running = run(_ask(small, is_stream=is_stream))
    assert running.records[0].model == "strong"
    assert running.records[0].outcome == "answered"


ODD = [5, "none", {"token_logprobs": 5}, {"content": ["x"]}, {"content": [{"logprob": "x"}]}]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_odd_logprobs_speak_for_nothing(odd: Any) -> None:
    answer = answer_of({"messages": [], "model": "weak"})
    answer["choices"][0]["logprobs"] = odd
    _, running = run(_ask(replies(200, answer), is_stream=False))
    assert running.records[0].model == "strong"
    assert running.records[0].outcome == "answered"


def test_who_asks_for_logprobs_gets_them() -> None:
    data, _ = run(_ask(says(-0.1), is_stream=True, logprobs=True))
    assert data.count(b"logprob") == 24


def test_a_kept_stream_that_breaks_goes_on_without_logprobs() -> None:
    async def begin(asking: Asking) -> None:
        said = [json.loads(event[6:]) for event in events_of(asking.body)[:6]]
        for event in said[1:]:
            event["choices"][0]["logprobs"] = {"content": [{"token": "w", "logprob": -0.1}]}
        await asking.events([b"data: " + json.dumps(each).encode() + b"\n\n" for each in said])
        await asyncio.sleep(0.05)
        asking.reset()

    async def work() -> Any:
        behaviors: Any = {"weak": [[begin, says(-0.1)]], "strong": [well]}
        config = replace(QUICK, cascade_tokens=2)
        policy = ScriptedPolicy(cascade=Above())
        async with gateway_over(behaviors, config, policy=policy) as running:
            return await running.stream(model="auto"), running

    data, running = run(work())
    assert read_stream(data)[0] == whole_text()
    assert b"logprob" not in data
    assert running.records[0].num_failovers == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_by_its_text_an_answer_is_kept_when_all_of_it_is_there(is_stream: bool) -> None:
    rule = Says(whole_text()[-5:])
    data, running = run(_ask(well, is_stream=is_stream, rule=rule))
    assert rule.shown == [(whole_text(), ())]
    assert running.records[0].reason == "cascade: kept"
    assert not running.servers["strong"][0].asked
    assert "logprobs" not in running.servers["weak"][0].asked[0].body
    if is_stream:
        assert read_stream(data)[0] == whole_text()


@pytest.mark.parametrize("is_stream", [False, True])
def test_by_its_text_an_answer_is_refused_and_counted_as_wasted(is_stream: bool) -> None:
    data, running = run(_ask(well, is_stream=is_stream, rule=Says("never")))
    record = running.records[0]
    assert (record.model, record.reason) == ("strong", "cascade: not sure enough")
    assert record.wasted_tokens > 0
    assert record.cost_usd > record.strongest_cost_usd
    if is_stream:
        assert read_stream(data)[0] == whole_text()


@pytest.mark.parametrize("small", [replies(500), [breaks(3, reset), replies(500)]])
@pytest.mark.parametrize("is_stream", [False, True])
def test_half_an_answer_is_not_judged_by_its_text(small: Any, is_stream: bool) -> None:
    rule = Says("")
    _, running = run(_ask(small, is_stream=is_stream, rule=rule))
    assert not rule.shown
    assert running.records[0].model == "strong"


def test_a_stream_too_long_to_be_held_is_asked_of_the_stronger() -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [well], "strong": [well]}
        config = replace(QUICK, max_answer_bytes=200)
        policy = ScriptedPolicy(cascade=Says(""))
        async with gateway_over(behaviors, config, policy=policy) as running:
            return await running.stream(model="auto"), running

    _, running = run(work())
    assert running.records[0].model == "strong"


@pytest.mark.parametrize(
    "fields", [{"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}]
)
def test_what_cannot_be_looked_at_first_goes_to_the_strongest(fields: Any) -> None:
    rule = Says("") if "tools" in fields else Above()
    _, running = run(_ask(says(-0.1), is_stream=False, rule=rule, **fields))
    record = running.records[0]
    assert (record.model, record.reason) == ("strong", "no cascade here: the strongest")
    assert not running.servers["weak"][0].asked


@pytest.mark.parametrize(
    ("first", "models"),
    [(replies(500), ["strong", "weak"]), (says(-3.0), ["strong", "strong"])],
    ids=["fault", "not sure"],
)
def test_a_conversation_leaves_a_small_model_for_its_answers_and_not_for_its_faults(
    first: Behavior, models: list[str]
) -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [[first, says(-0.1)]], "strong": [well]}
        policy = ScriptedPolicy(cascade=Above())
        async with gateway_over(behaviors, replace(QUICK, retries=0), policy=policy) as running:
            for _ in range(2):
                await running.ask(model="auto")
            return [record.model for record in running.records]

    assert run(work()) == models


def test_a_refusal_of_the_small_model_is_told_where_the_others_say_nothing() -> None:
    async def work() -> Any:
        behaviors: Any = {"weak": [replies(400, {"error": {"message": "no"}})], "strong": [reset]}
        config = replace(QUICK, retries=0)
        policy = ScriptedPolicy(cascade=Above())
        async with gateway_over(behaviors, config, policy=policy) as running:
            return (await running.ask(model="auto")).status, running.records[0]

    status, record = run(work())
    assert (status, record.model, record.outcome) == (400, "weak", "refused")
    assert record.reason == "cascade; weak refused; strong did not answer"
