"""The account of a request: what its key is asked for, what is written down, and for whom."""

import json
from typing import Any

import pytest

from moestro.api.record import Record
from moestro.errors import (
    CapacityError,
    ConfigError,
    ForbiddenError,
    MoestroError,
    QuotaError,
    UnknownKeyError,
    UnknownModelError,
)
from moestro.gateway.books import AnswerBound, Finished, status_of
from moestro.gateway.content import text_of
from moestro.gateway.fleet import Price
from moestro.gateway.trace import Settle, outcome_of
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import breaks, gateway_over, reset, well, whole_text


class NotingDoor:
    """Lets everybody in and notes what it is told."""

    def __init__(self, error: MoestroError | None = None, *, keeps_texts: bool = True) -> None:
        self.keeps_texts = keeps_texts
        self.admitted: list[tuple[str | None, str, int, AnswerBound | None]] = []
        self.settled: list[Record] = []
        self.finished: list[tuple[Record, str, str]] = []
        self._error = error

    def admit(
        self,
        caller: str | None,
        model: str,
        *,
        num_prompt: int,
        answer: AnswerBound | None,
    ) -> Settle:
        self.admitted.append((caller, model, num_prompt, answer))
        if self._error is not None:
            raise self._error
        return self.settled.append

    def finish(self, record: Record, *, prompt: str, answer: str) -> None:
        self.finished.append((record, prompt, answer))


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_door_hears_of_a_request_before_and_after_it(is_stream: bool) -> None:
    async def work() -> None:
        door = NotingDoor()
        async with gateway_over({"m": [well]}, around={"door": door}) as running:
            await (running.stream if is_stream else running.ask)(caller="alice", max_tokens=99)
        [(caller, model, num_prompt, answer)] = door.admitted
        assert (caller, model) == ("alice", "m")
        assert num_prompt > 0
        price = Price(input_usd_per_mtok=1, output_usd_per_mtok=2)
        assert answer == AnswerBound(max_tokens=99, price=price)
        [(record, prompt, text)] = door.finished
        assert door.settled == [record]
        assert (record.caller, record.outcome) == ("alice", "answered")
        assert (prompt, text) == ("say", whole_text())

    run(work())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_door_that_keeps_no_texts_is_given_none(is_stream: bool) -> None:
    async def work() -> None:
        door = NotingDoor(keeps_texts=False)
        async with gateway_over({"m": [well]}, around={"door": door}) as running:
            await (running.stream if is_stream else running.ask)()
        [(record, prompt, text)] = door.finished
        assert (record.outcome, prompt, text) == ("answered", "", "")

    run(work())


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5, "max_completion_tokens": 3}, 3),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 0}, 0),
    ],
)
def test_an_answers_limit_is_the_one_that_the_caller_set(
    fields: dict[str, Any], limit: int | None
) -> None:
    async def work() -> int | None:
        door = NotingDoor()
        async with gateway_over({"m": [well]}, around={"door": door}) as running:
            await running.ask(**fields)
        return door.admitted[0][3].max_tokens

    assert run(work()) == limit


def test_who_is_not_let_in_is_written_down_and_asks_nobody() -> None:
    async def work() -> None:
        door = NotingDoor(QuotaError("nothing left"))
        async with gateway_over({"m": [well]}, around={"door": door}) as running:
            with pytest.raises(QuotaError):
                await running.ask()
            assert not running.servers["m"][0].asked
        [(record, _, answer)] = door.finished
        assert (record.outcome, record.status, record.cost_usd) == ("refused", 429, 0)
        assert (record.error, answer) == ("nothing left", "")

    run(work())


def test_answers_are_told_with_their_texts_and_failures_are_not() -> None:
    told: list[Finished] = []

    async def work() -> None:
        behaviors: Any = {"weak": [[well, breaks(5, reset)]], "strong": [well]}
        around = {"after": (told.append,)}
        async with gateway_over(behaviors, policy=ScriptedPolicy(), around=around) as running:
            await running.stream(model="auto")
            reply = await running.ask(model="weak", stream=True, store=True)
            assert not isinstance(reply.body, bytes)
            assert [piece async for piece in reply.body]
            assert [record.outcome for record in running.records] == ["answered", "failed"]

    run(work())
    [finished] = told
    assert (finished.answer, finished.choice.is_auto) == (whole_text(), True)
    assert finished.record.strongest_cost_usd is not None


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"choices": [{"message": {"content": "chat"}}]}, "chat"),
        ({"choices": [{"text": "completion"}]}, "completion"),
        ({"content": [{"type": "text", "text": "message"}]}, "message"),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"choices": []}, ""),
        ({"content": [{"type": "thinking", "thinking": "x"}, {"text": "a"}, {"text": "b"}]}, "ab"),
        ({"content": [5]}, ""),
        ({"content": [{"text": 5}]}, ""),
        ({}, ""),
        ([], ""),
        (7, ""),
    ],
)
def test_a_whole_answers_text_is_that_of_its_first_choice(said: Any, text: str) -> None:
    assert text_of(json.dumps(said).encode()) == text


def test_what_is_no_json_has_no_text() -> None:
    assert text_of(b"<html>") == ""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CapacityError("full"), 429),
        (QuotaError("spent"), 429),
        (UnknownKeyError("who"), 401),
        (ForbiddenError("no"), 403),
        (UnknownModelError("what"), 404),
        (ConfigError("wrong"), 400),
        (MoestroError("gone"), 503),
        (KeyboardInterrupt(), 499),
    ],
)
def test_a_records_status_is_the_one_that_the_server_gives(
    error: BaseException, status: int
) -> None:
    assert status_of(error, outcome_of(error)) == status
