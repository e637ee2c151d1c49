"""Grammars on their way into the engine: one that breaks the compiler or is not wanted any more."""

import threading
from typing import Any, cast

import pytest

from moestro.engine.intake import Intake
from moestro.engine.request import EngineRequest
from moestro.errors import BackendError, MoestroError
from moestro.text.grammar import Grammar, GrammarFactory, GrammarSpec
from tests.builders import tiny_config

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
