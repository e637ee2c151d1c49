"""Answers that go on by several tokens in a call are, to the bit, what they are step by step."""

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.request import EngineRequest, Event, TokensEvent
from moestro.model.model import Transformer
from moestro.model.prepare import prepare
from moestro.ops.choose import chosen_kernels
from moestro.ops.native import NativeKernels
from tests.builders import linear_budget, random_model, random_tokens, tiny_config
from tests.parity.traffic import run

SHAPE = tiny_config(max_position_embeddings=256, num_nextn_predict_layers=1)
KERNELS = chosen_kernels().kernels
pytestmark = pytest.mark.skipif(not isinstance(KERNELS, NativeKernels), reason="no native kernels")


def prepared(seed: int = 0, kind: Any = "float32") -> Transformer:
    model = random_model(SHAPE.with_budget(linear_budget(SHAPE)), seed=seed)
    prepare(model, KERNELS, kind)
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return prepared()


def build(model: Transformer, burst_s: float = 0.1, **changes: Any) -> Engine:
    defaults: dict[str, Any] = {
        "cache": CacheConfig(block_size=16, num_tokens=4096),
        "draft": DraftConfig(mode="off"),
    }
    return Engine(model, EngineConfig(burst_s=burst_s, **(defaults | changes)))


def ask(name: str, seed: int = 0, **changes: Any) -> EngineRequest:
    defaults: dict[str, Any] = {
        "prompt": tuple(random_tokens(SHAPE, 5 + 11 * seed % 60, seed=seed).tolist()),
        "max_tokens": 40 + 9 * seed,
        "sampling": Sampling(temperature=(0, 0.8, 1.2)[seed % 3], top_p=0.95, seed=seed),
        "experts": (None, 2.5, 3.3)[seed % 3],
        "top_logprobs": (2, None, 0)[seed % 3],
        "wants_xray": seed % 2 == 0,
    }
    return EngineRequest(id=name, **(defaults | changes))


def crowd(number: int, **changes: Any) -> list[EngineRequest]:
    return [ask(f"r{seed}", seed, **changes) for seed in range(number)]


def num_new(events: Sequence[Event]) -> int:
    return sum(len(event.scores) for event in events if isinstance(event, TokensEvent))


def assert_same(model: Transformer, requests: Sequence[EngineRequest], **changes: Any) -> None:
    """Expect the same answers with bursts and without, in far fewer steps."""
    every = changes.pop("every", 0)
    plain, bursting = build(model, 0.0, **changes), build(model, **changes)
    expected, num_steps = run(plain, requests, every)
    found, num_bursts = run(bursting, requests, every)
    assert found == expected
    assert 2 * num_bursts < num_steps
    before, after = plain.stats(), bursting.stats()
    assert after.experts.tokens_LE == before.experts.tokens_LE
    assert after.generation_tokens == before.generation_tokens
    assert after.cache_usage == 0


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_bursts_equal_steps_to_the_bit(kind: str) -> None:
    assert_same(prepared(kind=kind), crowd(7))


def test_requests_that_join_on_the_way_change_nothing(model: Transformer) -> None:
    assert_same(model, crowd(6), every=4)


def test_a_full_batch_goes_on_in_bursts_while_others_wait(model: Transformer) -> None:
    assert_same(model, crowd(8, max_tokens=60), max_batch=2)


def test_a_first_token_is_told_of_at_once(model: Transformer) -> None:
    engine = build(model)
    run(engine, [ask("before", max_tokens=100)])
    engine.submit(ask("mine", prompt=(1, 2, 3), max_tokens=100))
    events = engine.step()
    assert num_new(events) == 1


def test_an_answer_ends_at_its_own_stop_token(model: Transformer) -> None:
    answers, _ = run(build(model, 0.0), crowd(4))
    stops = {name: frozenset({events[17][0].token_id}) for name, events in answers.items()}
    requests = [
        ask(f"r{seed}", seed, stop_token_ids=stops[f"r{seed}"] if seed else frozenset())
        for seed in range(4)
    ]
    assert_same(model, requests)
    stopped, _ = run(build(model), requests)
    assert [stopped[f"r{seed}"][-1][3] for seed in range(4)] == ["length", *["stop"] * 3]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, repetition_penalty=1.3),
        Sampling(temperature=1, logit_bias={3: 4.0}, seed=5),
        Sampling(temperature=1, min_tokens=30, seed=5),
    ],
)
def test_what_must_look_at_each_token_still_does(model: Transformer, sampling: Sampling) -> None:
    careful = ask("careful", 3, sampling=sampling, stop_token_ids=frozenset(range(20)))
    requests = [careful, ask("other", 1, max_tokens=200)]
    assert_same(model, requests)


def test_a_full_cache_preempts_as_it_does_without(model: Transformer) -> None:
    requests = crowd(6, max_tokens=60, wants_xray=False)
    calm, _ = run(build(model, 0.0), requests)
    tight = build(model, cache=CacheConfig(block_size=16, num_tokens=256))
    disturbed, _ = run(tight, requests)
    assert tight.stats().preemptions > 0
    assert disturbed == calm
    assert tight.stats().cache_usage == 0


def test_what_a_burst_wrote_is_found_again(model: Transformer) -> None:
    engine = build(model)
    mine = ask("mine", experts=None)
    answers, _ = run(engine, [mine])
    text = (*mine.prompt, *(event[0].token_id for event in answers["mine"]))
    again = ask("again", 1, prompt=text, experts=None)
    found, _ = run(engine, [again])
    assert engine.stats().prefix_hits == (len(text) - 1) // 16 * 16
    assert found == run(build(model, 0.0), [again])[0]


def test_drafts_come_and_go_between_bursts(model: Transformer) -> None:
    requests = crowd(3, max_tokens=200)
    engine = build(model, draft=DraftConfig(mode="auto"))
    found, num_steps = run(engine, requests)
    assert engine.stats().draft_tokens > 0
    assert num_steps < 200
    assert found == run(build(model, 0.0), requests)[0]


def test_a_burst_ends_when_somebody_waits(model: Transformer) -> None:
    reader, writer = os.pipe()
    try:
        engine = build(model)
        engine.submit(ask("mine", max_tokens=200))
        for _ in range(2):
            engine.step(reader)
        assert num_new(engine.step(reader)) > 1
        os.write(writer, b"!")
        assert num_new(engine.step(reader)) == 1
    finally:
        os.close(reader)
        os.close(writer)


def test_numbers_that_are_none_fail_their_request_alone() -> None:
    model = prepared(seed=1)
    requests = crowd(3, prompt=(1, 2, 3), max_tokens=14)
    answers, _ = run(build(model, 0.0), requests)
    # One answer comes to a token whose embedding is damaged; the others never do.
    others = {event[0].token_id for name in ("r1", "r2") for event in answers[name]}
    others |= {token for request in requests for token in request.prompt}
    damaged = next(e[0].token_id for e in answers["r0"][5:] if e[0].token_id not in others)
    first = [event[0].token_id for event in answers["r0"]].index(damaged)
    with torch.no_grad():
        model.embed_tokens.weight[damaged] = torch.nan
    plain, _ = run(build(model, 0.0), requests)
    found, _ = run(build(model), requests)
    assert found == plain
    assert found["r0"][: first + 1] == answers["r0"][: first + 1]
    assert "not finite" in found["r0"][-1]
    assert len(found["r0"]) == first + 2
    assert found["r1"] == answers["r1"]
