"""The way into the engine: what is refused, who ranks where, grammars that break the compiler."""

import threading
from typing import Any, cast

import pytest

from moestro.api.sampling import Sampling
from moestro.engine.intake import Intake
from moestro.engine.request import EngineRequest
from moestro.errors import BackendError, ConfigError, DataError, MoestroError
from moestro.text.grammar import Grammar, GrammarFactory, GrammarSpec
from tests.builders import linear_budget, tiny_config

TIMEOUT_S = 30


class Panic(BaseException):
    """What a compiler written in another language raises when it gives up."""


class Compiler:
    """Compiles nothing: notes what it was asked for, once it may go on."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.asked: list[str] = []
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self._error = error

    def compile(self, spec: GrammarSpec) -> Grammar:
        self.asked.append(spec.source)
        self.begun.set()
        assert self.may_go_on.wait(TIMEOUT_S)
        if self._error is not None:
            raise self._error
        return cast(Grammar, spec.source)


def intake_of(compiler: Compiler) -> Intake:
    return Intake(tiny_config(), 64, cast(GrammarFactory, compiler))


def request(name: str) -> EngineRequest:
    grammar = GrammarSpec(kind="regex", source=name)
    return EngineRequest(id=name, prompt=(1, 2), max_tokens=3, grammar=grammar)


def wait_for(intake: Intake, number: int) -> list[tuple[EngineRequest, Any]]:
    ready: list[tuple[EngineRequest, Grammar | MoestroError | None]] = []
    pause = threading.Event()
    for _ in range(100 * TIMEOUT_S):
        ready += intake.pop_ready()
        if len(ready) == number:
            break
        pause.wait(0.01)
    return ready


@pytest.mark.parametrize("error", [RuntimeError("oops"), Panic("oops")], ids=repr)
def test_a_grammar_that_breaks_the_compiler_ends_its_request_alone(error: BaseException) -> None:
    compiler = Compiler(error)
    intake = intake_of(compiler)
    compiler.may_go_on.set()
    intake.take(request("a"))
    ((asked, problem),) = wait_for(intake, 1)
    assert asked.id == "a"
    assert isinstance(problem, BackendError)
    assert f"{type(error).__name__}: oops" in str(problem)


def test_nobody_waits_for_the_grammar_of_a_request_that_left() -> None:
    compiler = Compiler()
    intake = intake_of(compiler)
    for name in "abc":
        intake.take(request(name))
    assert compiler.begun.wait(TIMEOUT_S)
    intake.drop("b")
    compiler.may_go_on.set()
    assert [grammar for _, grammar in wait_for(intake, 2)] == ["a", "c"]
    assert compiler.asked == ["a", "c"]


@pytest.mark.parametrize("token_id", [-1, tiny_config().vocab_size])
def test_ids_outside_the_vocabulary_are_refused(token_id: int) -> None:
    last = tiny_config().vocab_size - 1
    intake = Intake(tiny_config(), 64, None)
    with pytest.raises(ConfigError, match=f"logit_bias names token {token_id}: .* 0 to {last}"):
        intake.take(plain_request(sampling=Sampling(logit_bias={token_id: 1.0})))
    with pytest.raises(ConfigError, match=f"stop_token_ids names token {token_id}"):
        intake.take(plain_request(stop_token_ids=frozenset([token_id])))
    assert len(intake) == 0
    intake.take(
        plain_request(
            sampling=Sampling(logit_bias={0: 1.0, last: 1.0}), stop_token_ids=frozenset([0, last])
        )
    )
    assert len(intake) == 1


def test_prompt_and_answer_may_fill_the_longest_length_and_no_more() -> None:
    intake = Intake(tiny_config(), 8, None)
    intake.take(plain_request(prompt=(0,) * 5, max_tokens=3))
    with pytest.raises(DataError, match="need 9 tokens, limit 8"):
        intake.take(plain_request(prompt=(0,) * 5, max_tokens=4))
    with pytest.raises(DataError, match=r"token -1 is outside the vocabulary"):
        intake.take(plain_request(prompt=(0, -1)))


def test_a_budget_is_auto_or_from_the_fewest_experts_to_the_most() -> None:
    config = tiny_config(min_experts_per_tok=1, num_experts_per_tok=3)
    intake = Intake(config.with_budget(linear_budget(config)), 64, None)
    for experts in (None, "auto", 1, 2.5, 3):
        intake.take(plain_request(experts=experts))
    for experts in (0.9, 3.1):
        with pytest.raises(ConfigError, match="takes 1 to 3 per token"):
            intake.take(plain_request(experts=experts))
    with pytest.raises(ConfigError, match="no budget table"):
        Intake(config, 64, None).take(plain_request(experts="auto"))


def test_further_answers_rank_as_if_each_had_come_with_the_next_request() -> None:
    intake = Intake(tiny_config(), 64, None)
    arrivals = [
        [each.arrival for each in intake.choices(plain_request(**changes))]
        for changes in ({"num_choices": 3}, {}, {"turn": 1}, {"turn": 2, "num_choices": 2}, {})
    ]
    assert arrivals == [[1, 2, 3], [2], [3], [4, 5], [3]]


def test_choices_draw_by_seeds_that_follow_the_requests_own_or_one_of_chance() -> None:
    intake = Intake(tiny_config(), 64, None)
    leader, *followers = intake.choices(plain_request(num_choices=3, sampling=Sampling(seed=7)))
    assert [each.seed for each in (leader, *followers)] == [7, 8, 9]
    assert [each.leader for each in followers] == [leader, leader]
    drawn = {intake.choices(plain_request())[0].seed for _ in range(4)}
    assert len(drawn) == 4


def plain_request(**changes: Any) -> EngineRequest:
    return EngineRequest(**({"id": "plain", "prompt": (1, 2), "max_tokens": 3} | changes))
