"""Several requests at once: all their pieces, the first error, and nothing left behind."""

import asyncio
import contextlib
import gc
from contextlib import aclosing

import pytest

from moestro.api.chat import CompletionRequest
from moestro.api.chunks import Chunk, Started
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError
from moestro.server.merge import Piece, merge

ASK = CompletionRequest(model="scripted", prompt="x")


def collect(backend: ScriptedBackend, num: int, seen: list[Piece] | None = None) -> list[Piece]:
    found = [] if seen is None else seen

    async def run() -> None:
        async with aclosing(merge(backend, [ASK] * num)) as pieces:
            async for piece in pieces:
                found.append(piece)

    asyncio.run(run())
    return found


@pytest.mark.parametrize("num", [1, 2, 20])
def test_every_piece_comes_with_the_number_of_its_request_in_its_order(num: int) -> None:
    backend = ScriptedBackend(*(f"answer {number} of many" for number in range(num)))
    found = collect(backend, num)
    for number in range(num):
        own = [piece for place, piece in found if place == number]
        assert isinstance(own[0], Started)
        text = "".join(piece.text for piece in own if isinstance(piece, Chunk))
        assert text == f"answer {number} of many"
    assert not backend.aborted


def test_requests_run_at_the_same_time() -> None:
    backend = ScriptedBackend(Script(text="one two three", delay_s=0.02))
    places = [place for place, _ in collect(backend, 2)]
    assert places != sorted(places)


@pytest.mark.parametrize("error_after", [None, 1])
def test_the_first_error_ends_all_of_them(error_after: int | None) -> None:
    gone = Script(text="one two", error=BackendError("gone"), error_after=error_after)
    backend = ScriptedBackend(gone, Script(text="on " * 1000, delay_s=0.01))
    with pytest.raises(BackendError, match="gone"):
        collect(backend, 3)
    assert len(backend.aborted) >= 1
    assert backend.stats()[0].num_running + backend.stats()[0].num_waiting == 0


def test_errors_that_come_together_leave_none_unheard() -> None:
    async def fail() -> None:
        with contextlib.suppress(BackendError):
            async for _ in merge(backend, [ASK] * 3):
                pass

    async def listen() -> list[object]:
        unheard: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unheard.append(context))
        await fail()
        # It holds on to the frames that it came through, and they to the tasks.
        error.with_traceback(None)
        gc.collect()
        return unheard

    error = BackendError("gone")
    backend = ScriptedBackend(Script(text="one", error=error, error_after=None))
    assert not asyncio.run(listen())


@pytest.mark.parametrize("num", [1, 3])
def test_closing_aborts_all_of_them(num: int) -> None:
    async def leave() -> None:
        async with aclosing(merge(backend, [ASK] * num)) as pieces:
            for _ in range(num + 2):
                await anext(pieces)
        assert backend.stats()[0].num_running == 0
        assert len(backend.aborted) == num

    backend = ScriptedBackend(Script(text="on " * 1000, delay_s=0.001))
    asyncio.run(leave())


def test_a_reader_that_stops_reading_stops_the_backends() -> None:
    async def read_slowly() -> int:
        async with aclosing(merge(backend, [ASK] * 2)) as pieces:
            for _ in range(5):
                await anext(pieces)
            await asyncio.sleep(0.05)
            return backend.stats()[0].generation_tokens

    backend = ScriptedBackend("on " * 1000)
    assert asyncio.run(read_slowly()) < 10
