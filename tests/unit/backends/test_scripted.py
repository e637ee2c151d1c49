"""A scripted backend behaves as a real one does: in order, in time, and freed when left."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from moestro.api.backend import Backend
from moestro.api.chat import ChatRequest, CompletionRequest, Message, Options, Request, ToolCall
from moestro.api.chunks import Chunk, Started, Usage
from moestro.api.sampling import SamplingWish
from moestro.api.whole import Gathered
from moestro.backends.recital import Script
from moestro.backends.scripted import DEFAULT_CARD, ScriptedBackend
from moestro.errors import (
    BackendError,
    CapacityError,
    ConfigError,
    DataError,
    MoestroError,
    UnknownModelError,
)

MODEL = DEFAULT_CARD.id
TEXT = "Two experts, h\u00e9las \U0001f600, are enough."


def test_the_same_requests_get_the_same_answers() -> None:
    asked = ask(Options(top_logprobs=5, wants_xray=True, experts=2.5))
    first, second = (answer(ScriptedBackend(TEXT), asked)[:-1] for _ in range(2))
    assert first == second
    assert first[0] == Started(model=MODEL, prompt_tokens=1, experts=2.5)


def test_text_comes_token_by_token_and_ids_map_both_ways() -> None:
    backend = ScriptedBackend(TEXT)
    (whole,) = choices(answer(backend, ask()))
    assert (whole.text, whole.finish) == (TEXT, "stop")
    assert b"".join(token.data for token in whole.tokens).decode() == TEXT
    ids = asyncio.run(backend.tokenize(ask(prompt=TEXT)))
    assert ids == [token.token_id for token in whole.tokens]
    assert asyncio.run(backend.detokenize(MODEL, ids)) == TEXT
    assert all(0 < token_id < 2**53 for token_id in ids)
    with pytest.raises(DataError, match="token id is 7: no text has it"):
        asyncio.run(backend.detokenize(MODEL, [7]))


def test_no_chunk_has_half_a_character() -> None:
    pieces = chunks(answer(ScriptedBackend("\U0001f600" * 5), ask()))
    assert "".join(piece.text for piece in pieces) == "\U0001f600" * 5
    assert any("\\x" in token.text for piece in pieces for token in piece.tokens)


@pytest.mark.parametrize(
    ("options", "text", "finish", "stop"),
    [
        (Options(max_tokens=2), "one two", "length", None),
        (Options(max_tokens=0), "", "length", None),
        (Options(max_tokens=3), "one two three", "stop", None),
        (Options(stops=("three", " tw")), "one", "stop", " tw"),
        (Options(stops=("three", " tw"), keeps_stop=True), "one tw", "stop", " tw"),
        (
            Options(max_tokens=5, sampling=SamplingWish(ignore_eos=True)),
            "one two threeone two",
            "length",
            None,
        ),
    ],
)
def test_an_answer_ends_where_it_must(
    options: Options, text: str, finish: str, stop: str | None
) -> None:
    (whole,) = choices(answer(ScriptedBackend("one two three"), ask(options)))
    assert (whole.text, whole.finish, whole.stop) == (text, finish, stop)


def test_choices_and_requests_take_scripts_in_turn() -> None:
    backend = ScriptedBackend("zero", "one", "two")
    asked = ask(Options(num_choices=2))
    assert [each.text for each in choices(answer(backend, asked))] == ["zero", "one"]
    assert [each.text for each in choices(answer(backend, asked))] == ["one", "two"]


def test_an_echo_comes_first_and_is_not_counted_as_an_answer() -> None:
    backend = ScriptedBackend("three")
    asked = ask(Options(top_logprobs=1), prompt="one two", echo=True)
    (whole,) = choices(pieces := answer(backend, asked))
    assert whole.text == "one twothree"
    assert [token.logprob is None for token in whole.tokens] == [True, False, False]
    assert usage(pieces).completion_tokens == backend.stats()[0].generation_tokens == 1


def test_log_probabilities_are_of_a_distribution_with_the_likeliest_first() -> None:
    (whole,) = choices(answer(ScriptedBackend(TEXT), ask(Options(top_logprobs=20))))
    for token in whole.tokens:
        logprobs = [each.logprob for each in token.alternatives]
        assert logprobs == sorted(logprobs, reverse=True)
        assert token.alternatives[0].token_id == token.token_id
        assert len({each.token_id for each in token.alternatives}) == 20
        assert sum(2.718281828**each for each in logprobs) <= 1


def test_an_x_ray_has_the_models_shape_and_the_budgets_mean() -> None:
    backend = ScriptedBackend("word " * 500)
    asked = ask(Options(wants_xray=True, experts=2.5))
    (whole,) = choices(pieces := answer(backend, asked))
    for token in whole.tokens:
        assert len(token.visits) == DEFAULT_CARD.num_moe_layers
        for layer in token.visits:
            assert 2 <= len({visit.expert for visit in layer}) == len(layer) <= 4
            assert sum(visit.weight for visit in layer) == pytest.approx(1, abs=1e-3)
    assert usage(pieces).mean_experts == pytest.approx(2.5, abs=0.1)
    (plain,) = choices(answer(backend, ask(Options(experts=2.5))))
    assert not any(token.visits for token in plain.tokens)
    assert all(token.num_experts for token in plain.tokens)


@pytest.mark.parametrize(("asked", "granted"), [(None, None), ("min", 2), ("auto", 3.0), (4, None)])
def test_a_budget_is_granted(asked: float | None, granted: float | None) -> None:
    backend = ScriptedBackend("x", auto_experts=3.0)
    started = answer(backend, ask(Options(experts=asked)))[0]
    assert isinstance(started, Started)
    assert started.experts == granted


def test_tool_calls_and_reasoning_come_in_pieces() -> None:
    call = ToolCall(id="c", name="weather", arguments='{"city": "Oslo"}')
    backend = ScriptedBackend(Script(text="", reasoning="let me see", tool_calls=(call,)))
    chat = ChatRequest(model=MODEL, messages=(Message(role="user", content="hi"),))
    pieces = answer(backend, chat)
    assert sum(len(piece.tool_calls) for piece in chunks(pieces)) > 2
    (whole,) = choices(pieces)
    assert (whole.text, whole.reasoning, whole.finish) == ("", "let me see", "tool_calls")
    assert whole.tool_calls[0].arguments == call.arguments
    assert usage(pieces).reasoning_tokens == 3


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (CompletionRequest(model="other", prompt="x"), UnknownModelError),
        (CompletionRequest(model=MODEL, prompt=(7,)), DataError),
        (CompletionRequest(model=MODEL, prompt="x", options=Options(experts=5)), ConfigError),
    ],
)
def test_what_cannot_be_answered_is_refused_before_it_starts(
    asked: Request, kind: type[MoestroError]
) -> None:
    backend = ScriptedBackend("x")
    with pytest.raises(kind):
        answer(backend, asked)
    assert not backend.aborted


def test_errors_come_when_the_script_says() -> None:
    gone = BackendError("gone")
    early = ScriptedBackend(Script(error=gone))
    late = ScriptedBackend(Script(text="one two three", error=gone, error_after=2))
    seen: list[Started | Chunk] = []
    for backend in (early, late):
        with pytest.raises(BackendError, match="gone"):
            answer(backend, ask(), seen)
        assert not backend.aborted
        assert backend.stats()[0].num_running == 0
    assert "".join(piece.text for piece in chunks(seen)) == "one two"


@pytest.mark.parametrize("script", [Script(queue_s=60), Script(text="x " * 100, delay_s=0.01)])
def test_a_request_that_is_left_is_aborted_at_once(script: Script) -> None:
    async def leave(backend: ScriptedBackend) -> None:
        task = asyncio.create_task(collect(backend, ask(), []))
        await asyncio.sleep(0.05)
        assert backend.stats()[0].num_running + backend.stats()[0].num_waiting == 1
        task.cancel()
        await asyncio.wait((task,))

    backend = ScriptedBackend(script)
    asyncio.run(leave(backend))
    assert list(backend.aborted) == [ask()]
    assert backend.stats()[0].num_running + backend.stats()[0].num_waiting == 0


def test_more_requests_than_it_takes_are_refused_at_once() -> None:
    async def overload(backend: ScriptedBackend) -> float:
        async with aclosing(backend.stream(ask())) as first:
            await anext(first)
            with pytest.raises(CapacityError) as caught:
                await anext(backend.stream(ask()))
            return caught.value.retry_after_s

    backend = ScriptedBackend("x", max_requests=1, retry_after_s=3)
    assert asyncio.run(overload(backend)) == 3
    assert answer(backend, ask())


def test_it_loads_for_a_while_and_drains_when_it_stops() -> None:
    async def live() -> None:
        backend = ScriptedBackend(Script(text="one two three", delay_s=0.02), load_s=0.1)
        await backend.start()
        (stats,) = backend.stats()
        assert stats.state == "loading"
        assert 0 <= stats.progress < 1
        with pytest.raises(BackendError, match="loading"):
            await backend.tokenize(ask())
        await asyncio.sleep(0.12)
        assert backend.stats()[0].state == "ready"
        seen: list[Started | Chunk] = []
        task = asyncio.create_task(collect(backend, ask(), seen))
        await asyncio.sleep(0.01)
        await backend.stop(deadline_s=5)
        await task
        assert choices(seen)[0].text == "one two three"
        assert backend.stats()[0].state == "stopped"

    asyncio.run(live())


def test_statistics_count_what_was_answered() -> None:
    backend = ScriptedBackend(Script(text="word " * 200, cached_tokens=1))
    answer(backend, ask(prompt="one two"))
    (stats,) = backend.stats()
    assert (stats.prompt_tokens, stats.prefix_queries, stats.prefix_hits) == (2, 2, 1)
    num = stats.generation_tokens
    assert num == 201
    assert stats.experts.window_LE == stats.experts.tokens_LE
    assert [sum(row) for row in stats.experts.window_LE] == [4 * num] * 6
    assert [row[4] for row in stats.experts.histogram] == [num] * 6
    assert stats.experts.mean_experts == 4.0
    assert all(violation >= 0 for violation in stats.experts.violation_L)


def test_a_delay_is_waited_for_each_token() -> None:
    began = time.monotonic()
    answer(ScriptedBackend(Script(text="one two three", delay_s=0.02)), ask())
    assert time.monotonic() - began >= 0.06


def ask(
    options: Options | None = None, prompt: str = "hello", echo: bool = False
) -> CompletionRequest:
    return CompletionRequest(model=MODEL, prompt=prompt, echo=echo, options=options or Options())


def answer(
    backend: Backend, asked: Request, seen: list[Started | Chunk] | None = None
) -> list[Started | Chunk]:
    pieces = [] if seen is None else seen
    asyncio.run(collect(backend, asked, pieces))
    return pieces


async def collect(backend: Backend, asked: Request, pieces: list[Started | Chunk]) -> None:
    async for piece in backend.stream(asked):
        pieces.append(piece)


def chunks(pieces: Sequence[Started | Chunk]) -> list[Chunk]:
    return [piece for piece in pieces if isinstance(piece, Chunk)]


def choices(pieces: Sequence[Started | Chunk]) -> list[Chunk]:
    gathered = Gathered()
    for chunk in chunks(pieces)[:-1]:
        gathered.add(chunk.index, chunk)
    return gathered.choices()


def usage(pieces: Sequence[Started | Chunk]) -> Usage:
    last = chunks(pieces)[-1]
    assert last.usage is not None
    return last.usage
