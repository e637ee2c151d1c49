"""Answers that follow grammars: what is forced is computed together, and changes no bit of them."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.request import EndEvent, EngineRequest, TokensEvent
from moestro.text.grammar import Grammar, GrammarFactory, GrammarSpec
from moestro.text.learn import learn
from tests.builders import random_model, tiny_config

TOKENIZER = learn(["the quick brown fox jumps over the lazy dog, says he"] * 3, vocab_size=300)
SHAPE = tiny_config(
    vocab_size=TOKENIZER.vocab_size, num_nextn_predict_layers=1, max_position_embeddings=256
)
MODEL = random_model(SHAPE)
PATTERN = r"the (quick|lazy)[ab]{3}, says he [0-9]{2} over the lazy dog[xyz]"
GRAMMAR = GrammarSpec(kind="regex", source=PATTERN)
TIGHT = CacheConfig(block_size=16, num_tokens=80, has_prefix_reuse=False)
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed=4),
    Sampling(seed=4, top_p=0.7, frequency_penalty=0.5),
]


def build(mode: str = "off", **changes: Any) -> Engine:
    defaults: dict[str, Any] = {"cache": CacheConfig(block_size=16, num_tokens=1024)}
    config = EngineConfig(draft=DraftConfig(mode=mode), **(defaults | changes))
    return Engine(MODEL, config, GrammarFactory(TOKENIZER))


def ask(name: str, **changes: Any) -> EngineRequest:
    defaults: dict[str, Any] = {"max_tokens": 60, "top_logprobs": 2, "grammar": GRAMMAR}
    return EngineRequest(id=name, prompt=tuple(range(5, 25)), **(defaults | changes))


def run(engine: Engine, requests: Sequence[EngineRequest]) -> tuple[dict[str, list[Any]], int]:
    """Return what each request got, bit by bit, and the number of steps that gave tokens."""
    for request in requests:
        engine.submit(request)
    answers: dict[str, list[Any]] = {}
    num_steps = 0
    while engine.has_work:
        events = engine.step()
        tokens = [event for event in events if isinstance(event, TokensEvent)]
        num_steps += bool(tokens)
        for event in tokens:
            own = answers.setdefault(event.request_id, [])
            own.extend((new.score, new.finish) for new in event.tokens())
        assert all(
            event.draft_tokens == 0
            for event in events
            if isinstance(event, EndEvent) and event.request_id != "free"
        )
    return answers, num_steps


def text(answer: list[Any]) -> str:
    return TOKENIZER.decode([score.token_id for score, _ in answer])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_forced_tokens_in_one_step_equal_one_step_each(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, num_steps = run(build(), [ask("mine", sampling=sampling)])
    monkeypatch.setattr(Grammar, "force", lambda *_: [])
    in_turn, num_turns = run(build(), [ask("mine", sampling=sampling)])
    assert together == in_turn
    assert num_turns == len(in_turn["mine"])
    assert num_steps < 0.6 * num_turns
    assert re.fullmatch(PATTERN, text(together["mine"]))
    assert together["mine"][-1][1] == "stop"


def ids_of(answer: list[Any]) -> list[int]:
    return [score.token_id for score, _ in answer]


@pytest.mark.parametrize("mode", ["off", "always"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_grammar_begins_behind_the_token_that_it_waits_for(sampling: Sampling, mode: str) -> None:
    free, _ = run(build(), [ask("free", grammar=None, sampling=sampling)])
    thoughts = ids_of(free["free"])[:8]
    thoughts = thoughts[: thoughts.index(thoughts[-1]) + 1]
    waiting = ask("mine", sampling=sampling, grammar_after=thoughts[-1])
    alone, _ = run(build(mode), [waiting])
    among, _ = run(build(mode), [ask("other"), waiting, ask("free", grammar=None)])
    assert among["mine"] == alone["mine"]
    assert ids_of(alone["mine"])[: len(thoughts)] == thoughts
    assert re.fullmatch(PATTERN, text(alone["mine"][len(thoughts) :]))
    assert alone["mine"][-1][1] == "stop"


def test_an_answer_does_not_end_before_its_grammar_begins() -> None:
    free, _ = run(build(), [ask("free", grammar=None, max_tokens=6)])
    ids = ids_of(free["free"])
    stops = frozenset({ids[2]})
    never = next(token_id for token_id in range(SHAPE.vocab_size) if token_id not in ids)
    waiting = ask("mine", grammar_after=never, stop_token_ids=stops, max_tokens=6)
    answer, _ = run(build(), [waiting])
    assert not stops & set(ids_of(answer["mine"]))
    assert answer["mine"][-1][1] == "length"


@pytest.mark.parametrize("mode", ["off", "always"])
def test_a_guided_answer_keeps_its_bits_in_company_and_where_room_is_short(mode: str) -> None:
    assert sum(num_preemptions_beside_others(sampling, mode) for sampling in SAMPLINGS) > 0


def num_preemptions_beside_others(sampling: Sampling, mode: str) -> int:
    """Compare an answer alone with itself among others; return how often any was preempted."""
    alone, _ = run(build(), [ask("mine", sampling=sampling)])
    mine, free = ask("mine", sampling=sampling), ask("free", grammar=None)
    others = [ask(f"other{index}", sampling=Sampling(seed=index)) for index in range(6)]
    roomy = build(mode)
    tight = build(mode, cache=TIGHT, max_batch=8, max_batch_tokens=40)
    for engine in (roomy, tight):
        among, _ = run(engine, [*others[:3], mine, free, *others[3:]])
        assert among["mine"] == alone["mine"]
        assert all(re.fullmatch(PATTERN, text(among[other.id])) for other in others)
    return tight.stats().preemptions


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 9])
def test_a_limit_may_fall_within_what_is_forced(max_tokens: int) -> None:
    whole, _ = run(build(), [ask("mine", sampling=SAMPLINGS[1])])
    cut, _ = run(build(), [ask("mine", sampling=SAMPLINGS[1], max_tokens=max_tokens)])
    assert [score for score, _ in cut["mine"]] == [score for score, _ in whole["mine"][:max_tokens]]
    assert cut["mine"][-1][1] == "length"


def test_a_stop_token_among_those_forced_ends_the_answer() -> None:
    whole, _ = run(build(), [ask("mine", sampling=SAMPLINGS[0])])
    ids = [score.token_id for score, _ in whole["mine"]]
    [stop] = TOKENIZER.encode(",")
    stopped, _ = run(
        build(), [ask("mine", sampling=SAMPLINGS[0], stop_token_ids=frozenset({stop}))]
    )
    assert [score.token_id for score, _ in stopped["mine"]] == ids[: ids.index(stop) + 1]
    assert stopped["mine"][-1][1] == "stop"
