"""Whoever answers requests: a local engine, a remote server, a script, later a whole gateway.

The server and the pages know nothing else. Next: chat.py, chunks.py.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from moestro.api.cards import ModelCard
from moestro.api.chat import Request
from moestro.api.chunks import Chunk, Started
from moestro.api.stats import Stats

Stream = AsyncGenerator[Started | Chunk, None]


class Backend(Protocol):
    """Answers requests for the models on its cards.

    Errors are MoestroErrors: ConfigError and DataError for what a caller must change,
    UnknownModelError, CapacityError when full, BackendError when the engine died or is not there.
    """

    async def start(self) -> None:
        """Begin to load; returns at once. `stats` says when a model is ready."""

    async def stop(self, deadline_s: float) -> None:
        """Take no new request, let those under way end within the deadline, then stop."""

    def cards(self) -> Sequence[ModelCard]:
        """Return the models that can be asked."""

    def stats(self) -> Sequence[Stats]:
        """Return what is counted, one entry per model; cheap enough for every second."""

    def check_room(self, num_before: int) -> None:
        """Raise CapacityError if a request has no place behind so many that came just before."""

    def stream(self, request: Request) -> Stream:
        """Answer: one Started, then Chunks. Closing the generator aborts and frees everything.

        What is wrong with a request, or a lack of capacity, is raised before Started.
        """

    async def tokenize(self, request: Request) -> list[int]:
        """Return the token ids that the request's prompt becomes."""

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, with special tokens by their names."""

    async def show_tokens(self, model: str, token_ids: Sequence[int]) -> list[str]:
        """Return each token as a person reads it."""
