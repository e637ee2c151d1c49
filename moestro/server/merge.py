"""Several requests to a backend at once, their pieces in the order in which they come.

Knows no wire format. Next: exchange.py.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from moestro.api.backend import Backend, Stream
from moestro.api.chat import Request
from moestro.api.chunks import Chunk, Started

Piece = tuple[int, Started | Chunk]
Pieces = AsyncGenerator[Piece, None]


async def merge(backend: Backend, requests: Sequence[Request]) -> Pieces:
    """Yield each piece with the number of its request; the first error ends all of them.

    Closing the generator aborts whatever is not done. Of each request at most one piece waits here.
    """
    streams = [backend.stream(request) for request in requests]
    async with aclosing(_interleave(streams) if len(streams) > 1 else _only(*streams)) as pieces:
        async for piece in pieces:
            yield piece


async def _only(stream: Stream) -> Pieces:
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            yield 0, piece


async def _interleave(streams: Sequence[Stream]) -> Pieces:
    coming = {_begin_next(stream): number for number, stream in enumerate(streams)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            # All stay in `coming` until none has raised: what others raise is heard below.
            ended = sorted(done, key=coming.__getitem__)
            found = [(coming[task], task.result()) for task in ended]
            for task in ended:
                del coming[task]
            alive = [(number, piece) for number, piece in found if piece is not None]
            coming |= {_begin_next(streams[number]): number for number, _ in alive}
            for each in alive:
                yield each
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def _begin_next(stream: Stream) -> "asyncio.Task[Started | Chunk | None]":
    return asyncio.create_task(_next(stream))


async def _next(stream: Stream) -> Started | Chunk | None:
    return await anext(stream, None)
