"""Several backends as one: each request goes to the one that serves the model it names.

Chooses nothing: a name is a name. Next: local.py.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from moestro.api.backend import Backend, Stream
from moestro.api.cards import ModelCard
from moestro.api.chat import Request
from moestro.api.stats import Stats
from moestro.errors import ConfigError, UnknownModelError


class Models:
    """Backends side by side; no two may serve the same name."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = tuple(backends)
        self._by_name: dict[str, Backend] = {}
        for backend in backends:
            for card in backend.cards():
                if card.id in self._by_name:
                    raise ConfigError(f"two models are named {card.id}: give each its own name")
                self._by_name[card.id] = backend

    async def start(self) -> None:
        """Begin to load all of them."""
        await asyncio.gather(*(backend.start() for backend in self._backends))

    async def stop(self, deadline_s: float) -> None:
        """Stop all of them within the deadline."""
        await asyncio.gather(*(backend.stop(deadline_s) for backend in self._backends))

    def cards(self) -> Sequence[ModelCard]:
        """Return all models."""
        return tuple(card for backend in self._backends for card in backend.cards())

    def stats(self) -> Sequence[Stats]:
        """Return what each counted."""
        return tuple(stats for backend in self._backends for stats in backend.stats())

    async def stream(self, request: Request) -> Stream:
        """Answer by the model that the request names."""
        async with aclosing(self._find(request.model).stream(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def tokenize(self, request: Request) -> list[int]:
        """Return the token ids that the request's prompt becomes."""
        return await self._find(request.model).tokenize(request)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return await self._find(model).detokenize(model, token_ids)

    def _find(self, model: str) -> Backend:
        if model not in self._by_name:
            known = ", ".join(self._by_name)
            raise UnknownModelError(f"model {model[:100]!r} is not served here: choose {known}")
        return self._by_name[model]
