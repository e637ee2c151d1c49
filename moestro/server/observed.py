"""A backend that watches another: how long its answers took, and how large they were.

All times are this process's own, from the call on, but those of the engine's phases, which come
with the answer. Knows no HTTP. Next: gauges.py.
"""

import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram

from moestro.api.backend import Backend, Stream
from moestro.api.cards import ModelCard
from moestro.api.chat import Request
from moestro.api.chunks import Chunk, Finish, Started, Usage
from moestro.api.stats import Stats

_MODEL = "model_name"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
_EXPERTS = (1, 1.5, 2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4, 5, 6, 7, 8)


class Observed:
    """Passes everything on, and fills histograms on the way."""

    def __init__(
        self,
        backend: Backend,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._histograms = _Histograms(registry)
        self._clock = clock

    async def start(self) -> None:
        """Begin to load."""
        await self._backend.start()

    async def stop(self, deadline_s: float) -> None:
        """Stop, by the deadline."""
        await self._backend.stop(deadline_s)

    def cards(self) -> Sequence[ModelCard]:
        """Return the models that can be asked."""
        return self._backend.cards()

    def stats(self) -> Sequence[Stats]:
        """Return what the backend counts."""
        return self._backend.stats()

    def check_room(self, num_before: int) -> None:
        """Raise CapacityError as the backend does."""
        self._backend.check_room(num_before)

    async def stream(self, request: Request) -> Stream:
        """Answer as the backend does."""
        watch = _Watch(self._histograms, self._clock)
        try:
            async with aclosing(self._backend.stream(request)) as pieces:
                async for piece in pieces:
                    watch.see(piece)
                    yield piece
            watch.end()
        except Exception:
            watch.end("error")
            raise
        finally:
            watch.end("abort")

    async def tokenize(self, request: Request) -> list[int]:
        """Return the token ids of the request's prompt."""
        return await self._backend.tokenize(request)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return await self._backend.detokenize(model, token_ids)

    async def show_tokens(self, model: str, token_ids: Sequence[int]) -> list[str]:
        """Return each token as a person reads it."""
        return await self._backend.show_tokens(model, token_ids)


class _Histograms:
    """The registry's histograms of single requests, under vLLM's names where it has one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"moestro:{name}", text, (_MODEL,), registry=registry, buckets=buckets)

        self.finished = Counter(
            "moestro:request_success",
            "Requests that began, by how they ended.",
            (_MODEL, "finished_reason"),
            registry=registry,
        )
        self.prompt = histogram("request_prompt_tokens", "Prompt tokens.", _TOKENS)
        self.generated = histogram("request_generation_tokens", "Tokens generated.", _TOKENS)
        self.longest = histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest choice.", _TOKENS
        )
        self.experts = histogram("request_mean_experts", "Mean experts per token.", _EXPERTS)
        self.first = histogram("time_to_first_token_seconds", "From the call on.", _SECONDS)
        self.between = histogram(
            "inter_token_latency_seconds", "Between pieces of one choice.", _STEP_SECONDS
        )
        self.whole = histogram("e2e_request_latency_seconds", "From the call on.", _SECONDS)
        self.queue = histogram("request_queue_time_seconds", "In the engine's queue.", _SECONDS)
        self.prefill = histogram("request_prefill_time_seconds", "On the prompt.", _SECONDS)
        self.decode = histogram("request_decode_time_seconds", "On the answer.", _SECONDS)


class _Watch:
    """One request as it is answered; before it has started, there is nothing to tell."""

    def __init__(self, histograms: _Histograms, clock: Callable[[], float]) -> None:
        self._to = histograms
        self._clock = clock
        self._called_at = clock()
        self._model: str | None = None
        self._latest: dict[int, float] = {}
        self._num_tokens: Tally[int] = Tally()
        self._finish: Finish | None = None
        self._is_over = False

    def see(self, piece: Started | Chunk) -> None:
        """Measure one piece."""
        if isinstance(piece, Started):
            self._model = piece.model
            self._to.prompt.labels(piece.model).observe(piece.prompt_tokens)
            return
        assert self._model is not None, "a backend's first word is Started"
        if piece.tokens or piece.text or piece.reasoning or piece.tool_calls:
            self._see_output(piece, self._model)
        self._finish = piece.finish or self._finish
        if piece.usage is not None:
            self._see_usage(piece.usage, self._model)
        if piece.timing is not None:
            self._to.queue.labels(self._model).observe(piece.timing.queue_s)
            self._to.prefill.labels(self._model).observe(piece.timing.prefill_s)
            self._to.decode.labels(self._model).observe(piece.timing.decode_s)
        # The usage comes last, and not every reader asks for more.
        if piece.usage is not None:
            self.end()

    def end(self, reason: str | None = None) -> None:
        """Count how the request ended; what is said after the first time is not heard."""
        if self._model is None or self._is_over:
            return
        self._is_over = True
        self._to.finished.labels(self._model, reason or self._finish or "stop").inc()
        self._to.whole.labels(self._model).observe(self._clock() - self._called_at)

    def _see_output(self, chunk: Chunk, model: str) -> None:
        now = self._clock()
        before = self._latest.get(chunk.index)
        if before is not None:
            self._to.between.labels(model).observe(now - before)
        elif not self._latest:
            self._to.first.labels(model).observe(now - self._called_at)
        self._latest[chunk.index] = now
        self._num_tokens[chunk.index] += len(chunk.tokens)

    def _see_usage(self, usage: Usage, model: str) -> None:
        self._to.generated.labels(model).observe(usage.completion_tokens)
        # An echoed prompt's tokens are seen like others, but have not been generated.
        longest = min(usage.completion_tokens, max(self._num_tokens.values(), default=0))
        self._to.longest.labels(model).observe(longest)
        if usage.mean_experts is not None:
            self._to.experts.labels(model).observe(usage.mean_experts)
