"""A watched backend answers as before, and its histograms say what its answers took."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from prometheus_client import CollectorRegistry

from moestro.api.backend import Stream
from moestro.api.chat import ChatRequest, CompletionRequest, Message, Options, Request
from moestro.api.chunks import Chunk, Started, Timing, Token, Usage
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError, CapacityError
from moestro.server.observed import Observed

ASKED = CompletionRequest(model="scripted", prompt="x")


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the moment."""
        return self.now


class Timed(ScriptedBackend):
    """Gives pieces at moments of a test's choice."""

    def __init__(self, clock: Clock, *pieces: tuple[float, Started | Chunk]) -> None:
        super().__init__()
        self.clock = clock
        self.pieces = pieces

    async def stream(self, request: Request) -> Stream:
        """Turn the clock and give each piece."""
        for moment, piece in self.pieces:
            self.clock.now = moment
            yield piece


def token() -> Token:
    return Token(token_id=1, text="a", data=b"a")


async def gather(stream: Stream) -> list[Started | Chunk]:
    async with aclosing(stream) as pieces:
        return [piece async for piece in pieces]


def watch(backend: ScriptedBackend, request: Request = ASKED) -> CollectorRegistry:
    registry = CollectorRegistry()
    clock = backend.clock if isinstance(backend, Timed) else Clock()
    asyncio.run(gather(Observed(backend, registry, clock).stream(request)))
    return registry


def total(registry: CollectorRegistry, name: str, model: str = "tiny") -> tuple[float, float]:
    labels = {"model_name": model}
    count = registry.get_sample_value(f"moestro:{name}_count", labels) or 0.0
    return count, registry.get_sample_value(f"moestro:{name}_sum", labels) or 0.0


def ended(registry: CollectorRegistry, reason: str, model: str = "scripted") -> float | None:
    labels = {"model_name": model, "finished_reason": reason}
    return registry.get_sample_value("moestro:request_success_total", labels)


def test_times_are_measured_from_the_call_and_between_pieces() -> None:
    clock = Clock()
    registry = watch(
        Timed(
            clock,
            (100.5, Started(model="tiny", prompt_tokens=7)),
            (101.0, Chunk(index=0, text="a", tokens=(token(),))),
            (101.5, Chunk(index=1, text="b", tokens=(token(),))),
            (103.0, Chunk(index=0, text="c", tokens=(token(), token()))),
            (104.0, Chunk(index=0, finish="length")),
            (104.0, Chunk(index=1, finish="stop")),
            (
                105.0,
                Chunk(
                    usage=Usage(prompt_tokens=7, completion_tokens=4, mean_experts=2.5),
                    timing=Timing(queue_s=0.25, prefill_s=0.5, decode_s=4.0),
                ),
            ),
        )
    )
    assert total(registry, "time_to_first_token_seconds") == (1, 1.0)
    assert total(registry, "inter_token_latency_seconds") == (1, 2.0)
    assert total(registry, "e2e_request_latency_seconds") == (1, 5.0)
    assert total(registry, "request_prompt_tokens") == (1, 7)
    assert total(registry, "request_generation_tokens") == (1, 4)
    assert total(registry, "request_max_num_generation_tokens") == (1, 3)
    assert total(registry, "request_mean_experts") == (1, 2.5)
    assert total(registry, "request_queue_time_seconds") == (1, 0.25)
    assert total(registry, "request_prefill_time_seconds") == (1, 0.5)
    assert total(registry, "request_decode_time_seconds") == (1, 4.0)
    assert ended(registry, "stop", "tiny") == 1


@pytest.mark.parametrize(
    ("script", "request_", "reason"),
    [
        (Script(text="one two"), ASKED, "stop"),
        (
            Script(text="one two three"),
            CompletionRequest(model="scripted", prompt="x", options=Options(max_tokens=1)),
            "length",
        ),
    ],
)
def test_how_requests_end_is_counted(script: Script, request_: Request, reason: str) -> None:
    assert ended(watch(ScriptedBackend(script), request_), reason) == 1


def test_an_answer_passes_unchanged() -> None:
    request = ChatRequest(model="scripted", messages=(Message(role="user", content="hi"),))
    observed = Observed(ScriptedBackend("one two three"), CollectorRegistry())
    texts = [
        piece.text
        for piece in asyncio.run(gather(observed.stream(request)))
        if isinstance(piece, Chunk)
    ]
    assert "".join(texts) == "one two three"


def test_a_reader_that_goes_away_is_an_abort_and_reaches_the_backend() -> None:
    registry = CollectorRegistry()
    backend = ScriptedBackend("one two three")

    async def read_one() -> None:
        async with aclosing(Observed(backend, registry).stream(ASKED)) as pieces:
            await anext(pieces)

    asyncio.run(read_one())
    assert list(backend.aborted) == [ASKED]
    assert ended(registry, "abort") == 1


def test_a_reader_that_stops_at_the_usage_has_read_all() -> None:
    registry = CollectorRegistry()

    async def read_to_usage() -> None:
        observed = Observed(ScriptedBackend("one"), registry)
        async with aclosing(observed.stream(ASKED)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Chunk) and piece.usage is not None:
                    break

    asyncio.run(read_to_usage())
    assert ended(registry, "stop") == 1
    assert ended(registry, "abort") is None


def test_a_failure_in_the_middle_is_an_error() -> None:
    registry = CollectorRegistry()
    script = Script(text="one two", error=BackendError("gone"), error_after=1)
    with pytest.raises(BackendError, match="gone"):
        asyncio.run(gather(Observed(ScriptedBackend(script), registry).stream(ASKED)))
    assert ended(registry, "error") == 1


def test_what_never_began_is_not_counted() -> None:
    registry = CollectorRegistry()
    script = Script(error=CapacityError("full"))
    with pytest.raises(CapacityError, match="full"):
        asyncio.run(gather(Observed(ScriptedBackend(script), registry).stream(ASKED)))
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert "moestro:request_success_total" not in names


def test_all_else_is_the_backends_own() -> None:
    async def run() -> Sequence[object]:
        backend = ScriptedBackend()
        observed = Observed(backend, CollectorRegistry())
        await observed.start()
        ids = await observed.tokenize(ASKED)
        text = await observed.detokenize("scripted", ids)
        assert "".join(await observed.show_tokens("scripted", ids)) == text
        same = observed.cards() == backend.cards(), observed.stats() == backend.stats()
        await observed.stop(0.0)
        return text, same, backend.stats()[0].state

    assert asyncio.run(run()) == ("x", (True, True), "stopped")
