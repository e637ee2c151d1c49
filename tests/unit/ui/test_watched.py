"""A watched backend answers as the one within, and records waits, errors and levels.

Next: test_pages.py.
"""

import asyncio
from typing import Any

import pytest

from moestro.api.chat import CompletionRequest
from moestro.api.chunks import Chunk
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError, MoestroError, UnknownModelError
from moestro.ui.recent import Recent
from moestro.ui.watched import Watched

ASK = CompletionRequest(model="scripted", prompt="How many?")


async def answer(watched: Watched, request: CompletionRequest = ASK) -> str:
    pieces = [piece async for piece in watched.stream(request)]
    return "".join(piece.text for piece in pieces if isinstance(piece, Chunk))


def test_an_answer_passes_unchanged_and_its_wait_is_recorded() -> None:
    recent = Recent()
    watched = Watched(ScriptedBackend(Script(text="Two of them.", queue_s=0.02)), recent)

    async def run() -> str:
        await watched.start()
        text = await answer(watched)
        await watched.stop(0.1)
        return text

    assert asyncio.run(run()) == "Two of them."
    wait = recent.first_token("scripted")
    assert wait["count"] == 1
    assert wait["median_s"] >= 0.02


@pytest.mark.parametrize("error_after", [None, 2])
def test_an_error_is_counted_before_the_answer_and_in_its_middle(error_after: int | None) -> None:
    broken = Script(text="one two three", error=BackendError("it died"), error_after=error_after)
    assert errors_of(ScriptedBackend(broken), ASK, BackendError) == [("BackendError", "scripted")]


def test_what_a_caller_calls_a_model_is_not_recorded() -> None:
    request = CompletionRequest(model="my secret", prompt="How many?")
    found = errors_of(ScriptedBackend("Two"), request, UnknownModelError)
    assert found == [("UnknownModelError", "")]


def test_closing_the_stream_aborts_within_and_is_no_error() -> None:
    recent, inner = Recent(), ScriptedBackend("one two three four")
    watched = Watched(inner, recent)

    async def run() -> None:
        await watched.start()
        stream = watched.stream(ASK)
        async for piece in stream:
            if isinstance(piece, Chunk):
                break
        await stream.aclose()
        await watched.stop(0.1)

    asyncio.run(run())
    assert list(inner.aborted) == [ASK]
    assert recent.to_dict()["errors"] == []


def test_levels_are_sampled_from_start_to_stop() -> None:
    recent = Recent()
    watched = Watched(ScriptedBackend("Two"), recent)

    async def run() -> int:
        await watched.start()
        await asyncio.sleep(0)
        await watched.stop(0.1)
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
    (sample,) = recent.to_dict()["samples"]
    assert sample["levels"]["scripted"]["num_running"] == 0


def test_tokens_pass_both_ways() -> None:
    watched = Watched(ScriptedBackend("Two"), Recent())

    async def run() -> str:
        await watched.start()
        ids = await watched.tokenize(ASK)
        text = await watched.detokenize("scripted", ids)
        assert "".join(await watched.show_tokens("scripted", ids)) == text
        await watched.stop(0.1)
        return text

    assert asyncio.run(run()) == "How many?"


def errors_of(
    inner: ScriptedBackend, request: CompletionRequest, kind: type[MoestroError]
) -> list[tuple[str, str]]:
    recent = Recent()
    watched = Watched(inner, recent)

    async def run() -> None:
        await watched.start()
        with pytest.raises(kind):
            await answer(watched, request)
        await watched.stop(0.1)

    asyncio.run(run())
    found: list[dict[str, Any]] = recent.to_dict()["errors"]
    return [(error["kind"], error["model"]) for error in found]
