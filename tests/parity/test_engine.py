"""What a request gets does not depend on its company, the cache, chunks, preemption or drafts.

Not one bit of it: log-probabilities are compared for equality.
"""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import pytest
import torch

from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.request import (
    EndEvent,
    EngineRequest,
    FailEvent,
    NewToken,
    PromptEvent,
    StartEvent,
    TokensEvent,
)
from moestro.model.cache import ContiguousCache
from moestro.model.model import Transformer
from tests.builders import linear_budget, random_model, random_tokens, tiny_config
from tests.parity.traffic import steps

Answers = dict[tuple[str, int], list[NewToken]]
SHAPE = tiny_config(max_position_embeddings=256, num_nextn_predict_layers=1)
MODEL = random_model(SHAPE.with_budget(linear_budget(SHAPE)))
SAMPLED = Sampling(temperature=0.8, top_p=0.9, seed=11)


def build(model: Transformer = MODEL, **changes: Any) -> Engine:
    defaults: dict[str, Any] = {
        "cache": CacheConfig(block_size=16, num_tokens=4096),
        "draft": DraftConfig(mode="off"),
    }
    return Engine(model, EngineConfig(**(defaults | changes)))


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random_tokens(SHAPE, length, seed=seed).tolist())


def ask(name: str, length: int = 20, seed: int = 0, **changes: Any) -> EngineRequest:
    defaults: dict[str, Any] = {
        "prompt": prompt(length, seed),
        "max_tokens": 24,
        "sampling": Sampling(temperature=0),
        "top_logprobs": 2,
    }
    return EngineRequest(id=name, **(defaults | changes))


def run(engine: Engine, requests: Sequence[EngineRequest], every: int = 0) -> Answers:
    """Run requests to their ends; with `every`, one more is submitted each so many steps."""
    answers: Answers = {}
    for event in chain.from_iterable(steps(engine, requests, every)):
        assert not isinstance(event, FailEvent), event
        if isinstance(event, TokensEvent):
            answers.setdefault((event.request_id, event.choice), []).extend(event.tokens())
    return answers


def bits(tokens: Sequence[NewToken]) -> list[Any]:
    return [(new.score, new.num_experts, new.finish) for new in tokens]


def crowd(number: int) -> list[EngineRequest]:
    budgets = (None, 2.0, 2.5, 3.3)
    return [
        ask(
            f"other{index}",
            length=3 + 7 * index % 90,
            seed=100 + index,
            experts=budgets[index % 4],
            sampling=Sampling(temperature=index % 3, seed=index),
        )
        for index in range(number)
    ]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), SAMPLED])
@pytest.mark.parametrize("experts", [None, 2.5])
def test_alone_equals_among_32_others(sampling: Sampling, experts: float | None) -> None:
    mine = ask("mine", sampling=sampling, experts=experts)
    alone = run(build(), [mine])["mine", 0]
    others = crowd(32)
    among = run(build(), [*others[:16], mine, *others[16:]], every=1)["mine", 0]
    assert bits(among) == bits(alone)
    assert len(alone) == 24


def test_the_engine_agrees_with_the_plain_model() -> None:
    mine = ask("mine", length=30, max_tokens=8)
    found = run(build(), [mine])["mine", 0]
    tokens = torch.tensor([[*mine.prompt, *(event.score.token_id for event in found)]])
    with torch.no_grad():
        logits = MODEL.logits(MODEL(tokens)[0])
        cache = ContiguousCache(SHAPE, 64)
        cached = MODEL.logits(MODEL(tokens, cache=cache)[0])
    for index, event in enumerate(found):
        row = logits[29 + index].log_softmax(dim=-1)
        assert event.score.logprob == pytest.approx(float(row.max()), abs=1e-4)
        assert event.score.token_id == int(row.argmax())
    torch.testing.assert_close(cached, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [5, 16, 33])
def test_a_chunked_prompt_equals_a_whole_one(chunk: int) -> None:
    mine = ask("mine", length=150)
    whole = run(build(), [mine])["mine", 0]
    chunked = run(build(max_batch=4, max_batch_tokens=chunk), [mine])["mine", 0]
    assert bits(chunked) == bits(whole)


def test_a_prefix_hit_equals_a_miss() -> None:
    engine = build()
    miss = run(engine, [ask("miss", length=100)])["miss", 0]
    engine.submit(ask("hit", length=100))
    events = []
    while engine.has_work:
        events += engine.step()
    start = next(event for event in events if isinstance(event, StartEvent))
    assert start.cached_tokens == 96
    told = [event for event in events if isinstance(event, TokensEvent)]
    assert bits([new for event in told for new in event.tokens()]) == bits(miss)


def test_another_budget_never_takes_a_hit() -> None:
    engine = build()
    run(engine, [ask("all", length=100)])
    engine.submit(ask("few", length=100, experts=2.0))
    start = next(event for event in engine.step() if isinstance(event, StartEvent))
    assert start.cached_tokens == 0


def test_preempted_equals_undisturbed() -> None:
    requests = [ask(f"r{index}", length=40, seed=index, max_tokens=60) for index in range(6)]
    calm = run(build(), requests)
    tight = build(cache=CacheConfig(block_size=16, num_tokens=256))
    disturbed = run(tight, requests)
    assert tight.stats().preemptions > 0
    for name, events in calm.items():
        assert bits(disturbed[name]) == bits(events)
    assert tight.stats().cache_usage == 0


def test_a_preempted_answer_tells_its_prompt_once() -> None:
    requests = [
        ask(f"r{index}", length=40, seed=index, max_tokens=60, scores_prompt=True)
        for index in range(6)
    ]
    tight = build(cache=CacheConfig(block_size=16, num_tokens=256))
    told = [
        event.request_id
        for event in chain.from_iterable(steps(tight, requests))
        if isinstance(event, PromptEvent)
    ]
    assert tight.stats().preemptions > 0
    assert sorted(told) == [request.id for request in requests]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), SAMPLED])
def test_with_drafts_equals_without(sampling: Sampling) -> None:
    requests = [ask("mine", sampling=sampling), *crowd(5)]
    plain = run(build(), requests)
    engine = build(draft=DraftConfig(mode="always"))
    drafted = run(engine, requests, every=2)
    assert engine.stats().draft_tokens > 50
    for name, events in plain.items():
        assert bits(drafted[name]) == bits(events)


@pytest.mark.parametrize("mode", ["off", "always"])
def test_a_bad_word_never_comes_whole_with_drafts_or_without(mode: Any) -> None:
    free = [token.score.token_id for token in run(build(), [ask("free")])["free", 0]]
    words = (tuple(free[2:4]), tuple(free[5:6]))
    kept = run(build(draft=DraftConfig(mode=mode)), [ask("kept", bad_words=words)])["kept", 0]
    answer = [token.score.token_id for token in kept]
    assert len(answer) == 24
    assert answer != free
    assert words[0] not in pairwise(answer)
    assert free[5] not in answer


def test_a_model_that_repeats_itself_accepts_drafts() -> None:
    # With the main model's logits nearly constant the module's guess is mostly right.
    model = random_model(SHAPE, seed=4)
    with torch.no_grad():
        assert model.lm_head is not None
        model.lm_head.weight[7] += 50 * torch.sign(model.norm.weight)
        model.norm.weight.abs_()
        model.mtp[0].norm.weight.copy_(model.norm.weight)
    engine = build(model, draft=DraftConfig(mode="always"))
    run(engine, [ask("mine", max_tokens=40)])
    stats = engine.stats()
    assert 0 < stats.accepted_draft_tokens <= stats.draft_tokens


def test_choices_share_the_prompt_and_differ_by_seed() -> None:
    engine = build()
    answers = run(engine, [ask("mine", length=80, num_choices=3, sampling=SAMPLED)])
    assert len(answers) == 3
    texts = {tuple(event.score.token_id for event in events) for events in answers.values()}
    assert len(texts) == 3
    assert engine.stats().prefix_hits == 2 * 64
    single = run(build(), [ask("mine", length=80, sampling=SAMPLED)])
    assert bits(single["mine", 0]) == bits(answers["mine", 0])


def test_a_prompts_scores_equal_the_models() -> None:
    mine = ask("mine", length=90, max_tokens=0, scores_prompt=True)
    engine = build(max_batch=4, max_batch_tokens=32)
    engine.submit(mine)
    events = []
    while engine.has_work:
        events += engine.step()
    scores = next(event for event in events if isinstance(event, PromptEvent)).scores
    assert isinstance(events[-1], EndEvent)
    assert [score.token_id for score in scores] == list(mine.prompt)
    assert scores[0].logprob is None
    with torch.no_grad():
        rows = MODEL.logits(MODEL(torch.tensor([mine.prompt]))[0]).log_softmax(dim=-1)
    for index in range(1, 90):
        expected = float(rows[index - 1, mine.prompt[index]])
        assert scores[index].logprob == pytest.approx(expected, abs=1e-4)


def test_an_abort_frees_every_block_at_once() -> None:
    engine = build()
    engine.submit(ask("mine", length=100, max_tokens=100))
    for _ in range(5):
        engine.step()
    assert engine.stats().cache_usage > 0
    engine.abort("mine")
    assert engine.stats().cache_usage == 0
    assert not engine.has_work


def test_a_choice_that_is_cut_leaves_the_others_and_ends_with_them() -> None:
    engine = build()
    engine.submit(ask("mine", num_choices=2, sampling=SAMPLED))
    events = []
    for _ in range(6):
        events += engine.step()
    engine.cut("mine", 0)
    while engine.has_work:
        events += engine.step()
    lengths = [
        sum(
            len(event.scores)
            for event in events
            if isinstance(event, TokensEvent) and event.choice == choice
        )
        for choice in range(2)
    ]
    assert lengths[0] < 7
    assert lengths[1] == 24
    assert sum(isinstance(event, EndEvent) for event in events) == 1
    assert engine.stats().cache_usage == 0
