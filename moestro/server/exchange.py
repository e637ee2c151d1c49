"""Requests to the backend, and their answer as one HTTP response, whole or streamed.

Knows OpenAI's envelope, not what is in it. Next: merge.py, sse.py.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response

from moestro.api import chat
from moestro.api.backend import Backend
from moestro.api.chunks import Chunk, Started
from moestro.api.openai_answers import Head, HttpAnswer
from moestro.errors import ConfigError
from moestro.server.errors import describe
from moestro.server.merge import Piece, Pieces, merge
from moestro.server.sse import DONE, EventStream, JsonResponse, encode_event
from moestro.server.watch import while_connected

# Whole answers of so few tokens are written in a few milliseconds, with whatever is told of each.
_MOST_TOKENS_AT_ONCE = 1000


def build_head(kind: str) -> Head:
    """Make the id and the date of a new answer."""
    return Head(id=f"{kind}-{uuid.uuid4().hex}", created=int(time.time()))


def pick_model(backend: Backend, asked: str | None) -> str:
    """Return the model asked for, or the only one there is."""
    if asked is not None:
        return asked
    names = [card.id for card in backend.cards()]
    if len(names) != 1:
        raise ConfigError(f"model is missing: send one of {', '.join(names) or 'none, as yet'}")
    return names[0]


async def respond(
    request: Request,
    backend: Backend,
    asked: Sequence[chat.Request],
    answer: HttpAnswer,
    *,
    is_stream: bool,
) -> Response:
    """Answer whole, or begin a stream once the backend has begun."""
    pieces = merge(backend, asked)
    if not is_stream:
        await while_connected(request.receive, _gather(request, pieces, answer))
        return await _write_whole(answer)
    try:
        first = await while_connected(request.receive, anext(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    started = first[1] if isinstance(first[1], Started) else None
    return EventStream(_events(request, first, pieces, answer), answer_headers(started))


async def _write_whole(answer: HttpAnswer) -> Response:
    def write() -> Response:
        return JsonResponse(answer.whole(), headers=answer_headers(answer.started))

    # Many log-probabilities take seconds, in which other streams go on.
    is_long = answer.usage.completion_tokens + answer.usage.prompt_tokens > _MOST_TOKENS_AT_ONCE
    return await asyncio.to_thread(write) if is_long else write()


def answer_headers(started: Started | None) -> dict[str, str]:
    """Say who answers, and with how many experts per token where that was granted."""
    if started is None:
        return {}
    # A header is Latin text; a model's name need not be.
    headers = {"x-moestro-model": started.model.encode("ascii", "backslashreplace").decode()}
    if started.experts is not None:
        headers["x-moestro-experts"] = f"{started.experts:g}"
    return {**headers, **started.headers}


def note_tokens(request: Request, num_tokens: int) -> None:
    """Leave what was generated where the access line and the limits look for it."""
    request.state.generated_tokens = num_tokens


async def _gather(request: Request, pieces: Pieces, answer: HttpAnswer) -> None:
    async with aclosing(pieces):
        async for prompt, piece in pieces:
            answer.gather(prompt, piece)
            _note(request, piece)
    note_tokens(request, answer.usage.completion_tokens)


async def _events(
    request: Request, first: Piece, pieces: Pieces, answer: HttpAnswer
) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(_told(request, first, pieces, answer)) as told:
            async for event in told:
                yield encode_event(event)
    except Exception as error:
        problem = describe(error, getattr(request.state, "request_id", ""))
        yield encode_event(problem.to_dict())
        if problem.status == 500:
            raise
    else:
        yield DONE


async def _told(
    request: Request, first: Piece, pieces: Pieces, answer: HttpAnswer
) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(pieces):
        for event in answer.events(*first):
            yield event
        async for prompt, piece in pieces:
            _note(request, piece)
            for event in answer.events(prompt, piece):
                yield event
        for event in answer.last_events():
            yield event


def _note(request: Request, piece: Started | Chunk) -> None:
    # Also when the client goes away in the middle, before any usage.
    if isinstance(piece, Chunk) and not piece.is_echo:
        known = getattr(request.state, "generated_tokens", 0)
        note_tokens(request, known + len(piece.tokens))
