"""Answers that follow grammars are, in bursts of guesses, to the bit what they are step by step."""

import os
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.guide import Guide
from moestro.engine.request import EngineRequest, TokensEvent
from moestro.errors import DataError
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.model.prepare import prepare
from moestro.ops.choose import chosen_kernels
from moestro.ops.native import NativeKernels
from moestro.text.grammar import Grammar, GrammarFactory, GrammarSpec
from moestro.text.learn import learn
from tests.builders import random_model, tiny_config
from tests.parity.traffic import Answers, run, steps

TOKENIZER = learn(["the quick brown fox jumps over the lazy dog, says he"] * 3, vocab_size=300)
SHAPE = tiny_config(vocab_size=TOKENIZER.vocab_size, max_position_embeddings=256)
KERNELS = chosen_kernels().kernels
pytestmark = pytest.mark.skipif(not isinstance(KERNELS, NativeKernels), reason="no native kernels")

# What the model below mostly wants may come; then what it is refused, and what it is forced to.
LOOSE = "[^d]*"
ENDING = "[^d]{12}(qu|[^d])*zy"
FORCED = "([^d]{7}, says he [^d]{3})*"
STRICT = r"the (quick|lazy)[ab]{3}, says he [0-9]{2} over the lazy dog[xyz]"
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed=4),
    Sampling(temperature=0.6, seed=2),
    Sampling(top_p=0.8, top_k=9, min_p=0.02, seed=5),
]


def talkative(shape: ModelConfig) -> Transformer:
    """Build a model that writes tokens of plain letters."""
    model = random_model(shape)
    assert model.lm_head is not None
    with torch.no_grad():
        for token_id in range(shape.vocab_size):
            is_plain = re.fullmatch(rb"[ -~]+", TOKENIZER.token_bytes(token_id))
            model.lm_head.weight[token_id] *= 5 if is_plain else 0
    prepare(model, KERNELS, "float32")
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return talkative(SHAPE)


@pytest.fixture(scope="module")
def drafting_model() -> Transformer:
    return talkative(replace(SHAPE, num_nextn_predict_layers=1))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let guides guess nine tokens at once whenever they may, however wrong that goes."""

    def num_guesses(guide: Guide, sampling: Sampling) -> int:
        return 9 if guide.fault is None and guide.can_guess(sampling) else 0

    monkeypatch.setattr(Guide, "num_guesses", num_guesses)


def build(model: Transformer, burst_s: float, **changes: Any) -> Engine:
    defaults: dict[str, Any] = {
        "cache": CacheConfig(block_size=16, num_tokens=2048),
        "draft": DraftConfig(mode="off"),
    }
    config = EngineConfig(burst_s=burst_s, **(defaults | changes))
    return Engine(model, config, GrammarFactory(TOKENIZER))


def ask(name: str, pattern: str | None, **changes: Any) -> EngineRequest:
    grammar = None if pattern is None else GrammarSpec(kind="regex", source=pattern)
    defaults: dict[str, Any] = {
        "prompt": tuple(range(5, 25)),
        "max_tokens": 70,
        "sampling": SAMPLINGS[1],
        "top_logprobs": 2,
        "wants_xray": True,
    }
    return EngineRequest(id=name, grammar=grammar, **(defaults | changes))


def text(answer: list[Any]) -> str:
    return TOKENIZER.decode([new.score.token_id for new in answer])


def crowd(**changes: Any) -> list[EngineRequest]:
    patterns = (LOOSE, None, STRICT, FORCED, ENDING, None)
    return [
        ask(f"r{index}", pattern, sampling=SAMPLINGS[index % 4], **changes)
        for index, pattern in enumerate(patterns)
    ]


@pytest.mark.parametrize("pattern", [LOOSE, ENDING, FORCED, STRICT])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_guesses_in_bursts_give_what_steps_give(
    model: Transformer, pattern: str, sampling: Sampling, eager: None
) -> None:
    request = ask("mine", pattern, sampling=sampling)
    expected, _ = run(build(model, 0.0), [request])
    found, _ = run(build(model, 0.1), [request])
    assert found == expected
    is_whole = found["mine"][-1].finish == "stop"
    assert not is_whole or re.fullmatch(pattern, text(found["mine"]))


def test_bursts_of_a_crowd_change_no_answer(model: Transformer, eager: None) -> None:
    expected, _ = run(build(model, 0.0), crowd())
    assert run(build(model, 0.1), crowd())[0] == expected
    assert run(build(model, 0.1), crowd(), every=5)[0] == expected
    tight = build(model, 0.1, cache=CacheConfig(block_size=16, num_tokens=160))
    assert (
        run(tight, crowd(wants_xray=False))[0] == run(build(model, 0.0), crowd(wants_xray=False))[0]
    )
    assert tight.stats().preemptions > 0
    assert tight.stats().cache_usage == 0


@pytest.mark.parametrize("sampling", [*SAMPLINGS[:3], Sampling(top_p=0.99, seed=1)])
def test_a_model_that_wants_what_may_come_goes_on_in_bursts(
    model: Transformer, sampling: Sampling
) -> None:
    request = ask("mine", LOOSE, sampling=sampling, max_tokens=200)
    expected, num_steps = run(build(model, 0.0), [request])
    found, num_bursts = run(build(model, 0.1), [request])
    assert found == expected
    assert 2 * num_bursts < num_steps


@pytest.mark.parametrize("max_tokens", [2, 7, 11, 12, 13])
def test_a_limit_ends_a_burst(model: Transformer, max_tokens: int, eager: None) -> None:
    request = ask("mine", FORCED, sampling=SAMPLINGS[0], max_tokens=max_tokens)
    expected, _ = run(build(model, 0.0), [request])
    assert run(build(model, 0.1), [request])[0] == expected
    assert len(expected["mine"]) == max_tokens


def test_a_stop_token_ends_an_answer_in_a_burst(model: Transformer, eager: None) -> None:
    whole, _ = run(build(model, 0.0), [ask("mine", LOOSE, sampling=SAMPLINGS[1])])
    stops = frozenset({whole["mine"][20].score.token_id})
    request = ask("mine", LOOSE, sampling=SAMPLINGS[1], stop_token_ids=stops)
    expected, _ = run(build(model, 0.0), [request])
    assert run(build(model, 0.1), [request])[0] == expected
    assert expected["mine"][-1].finish == "stop"


@pytest.mark.parametrize("name", ["offer", "force"])
def test_a_grammar_that_fails_within_a_burst_fails_its_request_behind_the_same_tokens(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, name: str, eager: None
) -> None:
    requests = [
        ask("mine", LOOSE, sampling=SAMPLINGS[0]),
        ask("other", None, sampling=SAMPLINGS[1]),
    ]
    whole, _ = run(build(model, 0.0), requests)
    sound, num_calls = getattr(Grammar, name), 0

    def failing(grammar: Grammar, *arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 20:
            raise DataError("too large")
        return sound(grammar, *arguments)

    monkeypatch.setattr(Grammar, name, failing)
    expected, _ = run(build(model, 0.0), requests)
    num_calls = 0
    found, _ = run(build(model, 0.1), requests)
    assert found == expected
    assert found["mine"][-1] == "too large"
    told = found["mine"][:-1]
    assert len(told) > 10
    assert told == whole["mine"][: len(told)]
    assert found["other"] == whole["other"]


LETTERS = frozenset(TOKENIZER.encode("aeiou"))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_choices": 3, "top_logprobs": None},
        {
            "sampling": Sampling(min_tokens=30, seed=3),
            "stop_token_ids": frozenset(range(0, SHAPE.vocab_size, 3)),
        },
        {"bad_words": tuple((token_id,) for token_id in sorted(LETTERS))},
        {"sampling": Sampling(temperature=0.7, repetition_penalty=1.2, seed=3)},
        {"sampling": Sampling(temperature=0.8, logit_bias={70: 3.0}, seed=3)},
        {"sampling": Sampling(temperature=0.8, top_p=0.9, seed=3), "top_logprobs": None},
        {"sampling": Sampling(temperature=0.001, top_p=0.9, seed=3)},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_whatever_else_is_asked_a_burst_gives_what_steps_give(
    model: Transformer, changes: dict[str, Any], eager: None
) -> None:
    requests = [ask(name, name, **changes) for name in (LOOSE, ENDING, FORCED, STRICT)]
    requests.append(ask("free", None, **changes))
    plain, bursting = build(model, 0.0), build(model, 0.1)
    expected, _ = run(plain, requests)
    assert run(bursting, requests)[0] == expected
    assert bursting.stats().generation_tokens == plain.stats().generation_tokens
    for request in requests:
        assert run(build(model, 0.1), [request])[0][request.id] == expected[request.id]


def test_a_grammar_that_waits_for_a_token_begins_right_behind_it_in_bursts(
    model: Transformer, eager: None
) -> None:
    whole, _ = run(build(model, 0.0), [ask("mine", None, sampling=SAMPLINGS[1])])
    ids = [new.score.token_id for new in whole["mine"]]
    awaited = ids[20]
    num_thoughts = ids.index(awaited) + 1
    for pattern in (LOOSE, FORCED, STRICT):
        request = ask("mine", pattern, sampling=SAMPLINGS[1], grammar_after=awaited)
        expected, _ = run(build(model, 0.0), [request])
        assert run(build(model, 0.1), [request])[0] == expected
        assert expected["mine"][:num_thoughts] == whole["mine"][:num_thoughts]


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_a_model_that_could_draft_goes_on_in_bursts_where_all_follow_grammars(
    drafting_model: Transformer, mode: Any
) -> None:
    request = ask("mine", LOOSE, sampling=SAMPLINGS[0], max_tokens=200)
    expected, num_steps = run(build(drafting_model, 0.0), [request])
    found, num_bursts = run(build(drafting_model, 0.1, draft=DraftConfig(mode=mode)), [request])
    assert found == expected
    assert 2 * num_bursts < num_steps


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_drafts_and_bursts_of_guesses_take_turns_and_change_nothing(
    drafting_model: Transformer, mode: Any, eager: None
) -> None:
    # Those that follow no grammar end first, and leave the rest to bursts.
    short = [ask(f"free{index}", None, max_tokens=20 + 9 * index) for index in range(3)]
    requests = [*crowd()[2:5], *short]
    expected, _ = run(build(drafting_model, 0.0), requests)
    engine = build(drafting_model, 0.1, draft=DraftConfig(mode=mode))
    assert run(engine, requests)[0] == expected
    assert run(engine, requests, every=7)[0] == expected
    assert engine.stats().draft_tokens > 0


@pytest.mark.parametrize("pattern", [ENDING, FORCED])
def test_no_refused_guess_is_found_as_the_beginning_of_another_request(
    model: Transformer, pattern: str, eager: None
) -> None:
    engine = build(model, 0.1)
    mine = ask("mine", pattern, sampling=SAMPLINGS[1])
    answers, _ = run(engine, [mine])
    whole = (*mine.prompt, *(new.score.token_id for new in answers["mine"]))
    again = ask("again", None, prompt=whole, max_tokens=20)
    found, _ = run(engine, [again])
    assert engine.stats().prefix_hits == (len(whole) - 1) // 16 * 16
    assert found == run(build(model, 0.0), [again])[0]


def test_an_answer_taken_away_between_bursts_leaves_the_others_as_they_were(
    model: Transformer, eager: None
) -> None:
    expected, _ = run(build(model, 0.0), crowd())
    engine = build(model, 0.1)
    answers: Answers = {}
    for events in steps(engine, crowd()):
        for event in events:
            if isinstance(event, TokensEvent):
                answers.setdefault(event.request_id, []).extend(event.tokens())
        # No more than nine come at once.
        if len(answers.get("r0", [])) > 20:
            engine.abort("r0")
        if len(answers.get("r3", [])) > 20:
            engine.cut("r3", 0)
    for name in ("r1", "r2", "r4", "r5"):
        assert answers[name] == expected[name]
    for name in ("r0", "r3"):
        assert len(answers[name]) < len(expected[name])
        assert answers[name] == expected[name][: len(answers[name])]
    assert engine.stats().cache_usage == 0


def test_guesses_end_when_somebody_waits(model: Transformer) -> None:
    expected, _ = run(build(model, 0.0), [ask("mine", LOOSE, sampling=SAMPLINGS[0])])
    reader, writer = os.pipe()
    try:
        os.write(writer, b"!")
        engine = build(model, 0.1)
        engine.submit(ask("mine", LOOSE, sampling=SAMPLINGS[0]))
        told: list[Any] = []
        while engine.has_work:
            new = [event for event in engine.step(reader) if isinstance(event, TokensEvent)]
            assert sum(len(event.scores) for event in new) <= 1
            told += [token for event in new for token in event.tokens()]
        assert told == expected["mine"]
    finally:
        os.close(reader)
        os.close(writer)
