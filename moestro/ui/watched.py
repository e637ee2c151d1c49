"""A backend that is watched: it answers as the one within, and what it does is recorded.

Knows no HTTP. Next: recent.py, pages.py.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from moestro.api.backend import Backend, Stream
from moestro.api.cards import ModelCard
from moestro.api.chat import Request
from moestro.api.chunks import Chunk, Started
from moestro.api.stats import Stats
from moestro.errors import MoestroError
from moestro.ui.recent import SAMPLE_SECONDS, Recent


class Watched:
    """A Backend around another one; it records waits, errors and levels in `recent`."""

    def __init__(self, backend: Backend, recent: Recent) -> None:
        self._backend = backend
        self._recent = recent
        self._sampling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to load and to take samples."""
        await self._backend.start()
        if self._sampling is None:
            self._sampling = asyncio.create_task(self._sample_forever())

    async def stop(self, deadline_s: float) -> None:
        """Stop taking samples once the backend has stopped."""
        await self._backend.stop(deadline_s)
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None

    def cards(self) -> Sequence[ModelCard]:
        """Return the models that can be asked."""
        return self._backend.cards()

    def stats(self) -> Sequence[Stats]:
        """Return what is counted, one entry per model."""
        return self._backend.stats()

    def check_room(self, num_before: int) -> None:
        """Raise CapacityError as the backend does."""
        self._backend.check_room(num_before)

    async def stream(self, request: Request) -> Stream:
        """Answer, and record how long the first token took or which error came instead."""
        wait = _Wait(self._recent, request.model)
        try:
            async with aclosing(self._backend.stream(request)) as pieces:
                async for piece in pieces:
                    wait.note(piece)
                    yield piece
        except MoestroError as error:
            self._recent.add_error(type(error).__name__, self._known(wait.model))
            raise

    async def tokenize(self, request: Request) -> list[int]:
        """Return the token ids that the request's prompt becomes."""
        return await self._backend.tokenize(request)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return await self._backend.detokenize(model, token_ids)

    async def show_tokens(self, model: str, token_ids: Sequence[int]) -> list[str]:
        """Return each token as a person reads it."""
        return await self._backend.show_tokens(model, token_ids)

    def _known(self, model: str) -> str:
        # Whatever a request calls its model is the caller's text, and there is no end to it.
        return model if any(card.id == model for card in self.cards()) else ""

    async def _sample_forever(self) -> None:
        while True:
            self._recent.add_sample(self.stats())
            await asyncio.sleep(SAMPLE_SECONDS)


class _Wait:
    """From a request to its first token."""

    def __init__(self, recent: Recent, model: str) -> None:
        self.model = model
        self._recent = recent
        self._began_at = recent.now()
        self._is_over = False

    def note(self, piece: Started | Chunk) -> None:
        """Record the wait at the first piece of the answer."""
        if isinstance(piece, Started):
            self.model = piece.model
        elif not self._is_over and _is_output(piece):
            self._is_over = True
            self._recent.add_first_token(self.model, self._recent.now() - self._began_at)


def _is_output(chunk: Chunk) -> bool:
    return bool(chunk.text or chunk.reasoning or chunk.tool_calls or chunk.tokens)
