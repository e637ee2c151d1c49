"""One request to the backend, and its answer in the words of a dialect, whole or streamed.

Knows that an answer has a beginning, pieces and an end, not how they are told. Next: messages.py,
responses.py.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request, Response

from moestro.api import chat
from moestro.api.backend import Backend, Stream
from moestro.api.chunks import Chunk, Started
from moestro.errors import MoestroError
from moestro.server.errors import describe
from moestro.server.exchange import answer_headers, note_tokens
from moestro.server.sse import EventStream, JsonResponse, encode_event
from moestro.server.watch import while_connected

Event = dict[str, Any]


class Narrator(Protocol):
    """Tells one answer: each method returns the events that a stream sends now."""

    def start(self) -> list[Event]:
        """Begin."""

    def push(self, chunk: Chunk) -> list[Event]:
        """Go on."""

    def end(self) -> list[Event]:
        """End well."""

    def fail(self, status: int, message: str) -> list[Event]:
        """End badly."""

    def body(self) -> Event:
        """Return the whole answer as far as it has come."""


async def narrate(
    request: Request,
    backend: Backend,
    asked: chat.Request,
    begin: Callable[[Started], Narrator],
    *,
    is_stream: bool,
) -> Response:
    """Answer whole, or begin a stream once the backend has begun."""
    pieces = backend.stream(asked)
    if not is_stream:
        work = _gather(request, pieces, begin)
        started, narrator = await while_connected(request.receive, work)
        return JsonResponse(narrator.body(), headers=answer_headers(started))
    try:
        started = await while_connected(request.receive, _start(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    events = _events(request, pieces, begin(started))
    return EventStream(events, answer_headers(started))


async def _start(pieces: Stream) -> Started:
    started = await anext(pieces)
    assert isinstance(started, Started), "a backend's first word is Started"
    return started


async def _gather(
    request: Request, pieces: Stream, begin: Callable[[Started], Narrator]
) -> tuple[Started, Narrator]:
    async with aclosing(pieces):
        started = await _start(pieces)
        narrator = begin(started)
        async for chunk in pieces:
            narrator.push(_note(request, chunk))
    narrator.end()
    return started, narrator


async def _events(
    request: Request, pieces: Stream, narrator: Narrator
) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces), aclosing(_tell(request, pieces, narrator)) as told:
        try:
            async for event in told:
                yield _encode(event)
        except MoestroError as error:
            for event in _tell_failure(request, narrator, error):
                yield _encode(event)
        except Exception as error:
            for event in _tell_failure(request, narrator, error):
                yield _encode(event)
            raise


async def _tell(
    request: Request, pieces: Stream, narrator: Narrator
) -> AsyncGenerator[Event, None]:
    for event in narrator.start():
        yield event
    async for chunk in pieces:
        for event in narrator.push(_note(request, chunk)):
            yield event
    for event in narrator.end():
        yield event


def _tell_failure(request: Request, narrator: Narrator, error: Exception) -> list[Event]:
    problem = describe(error, getattr(request.state, "request_id", ""))
    return narrator.fail(problem.status, problem.message)


def _encode(event: Event) -> bytes:
    return encode_event(event, event["type"])


def _note(request: Request, piece: Started | Chunk) -> Chunk:
    assert isinstance(piece, Chunk), "a backend starts once"
    # Counted as they come, for a client that goes away in the middle; put right by the usage.
    num_tokens = getattr(request.state, "generated_tokens", 0) + len(piece.tokens)
    note_tokens(request, piece.usage.completion_tokens if piece.usage else num_tokens)
    return piece
