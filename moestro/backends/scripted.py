"""A backend that recites: the same requests get the same answers. For tests, demos and replay.

Answers come token by token, with log-probabilities and experts of a made-up model; they can be
slow, refused or broken on demand. Knows no model. Next: recital.py, scripted_counts.py.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from moestro.api.backend import Stream
from moestro.api.cards import ModelCard
from moestro.api.chat import Options, Request
from moestro.api.chunks import Chunk, Started, Timing
from moestro.api.stats import State, Stats
from moestro.backends.recital import Recital, Script, interleave, prompt_ids, total_usage
from moestro.backends.scripted_counts import Counts
from moestro.backends.scripted_tokens import decode, show
from moestro.errors import BackendError, CapacityError, ConfigError, MoestroError, UnknownModelError

DEFAULT_CARD = ModelCard(
    id="scripted",
    created=1_700_000_000,
    context_length=8192,
    fewest_experts=2,
    most_experts=4,
    has_budget=True,
    has_fim=True,
    has_chat_template=True,
    num_moe_layers=6,
    num_experts=16,
    num_parameters=120_000_000,
    num_active_parameters=46_000_000,
)
_REMEMBERED = 1000


class ScriptedBackend:
    """Answers the n-th request with script n, its k-th choice with script n + k, round and round.

    `requests` are the latest ones taken, `aborted` those whose reader went away before the end.
    """

    def __init__(
        self,
        *scripts: Script | str,
        cards: Sequence[ModelCard] = (DEFAULT_CARD,),
        max_requests: int | None = None,
        retry_after_s: float = 1.0,
        load_s: float = 0.0,
        auto_experts: float | None = None,
    ) -> None:
        """More than `max_requests` at once are refused; "auto" grants `auto_experts` experts."""
        self.requests: deque[Request] = deque(maxlen=_REMEMBERED)
        self.aborted: deque[Request] = deque(maxlen=_REMEMBERED)
        self._scripts = [
            Script(text=script) if isinstance(script, str) else script for script in scripts
        ] or [Script()]
        self._cards = {card.id: card for card in cards}
        self._counts = {card.id: Counts(card) for card in cards}
        self._max_requests = max_requests
        self._retry_after_s = retry_after_s
        self._auto_experts = auto_experts
        self._load_s = load_s
        self._state: State = "loading"
        self._started_at = time.monotonic()
        self._num_taken = 0

    async def start(self) -> None:
        """Begin to load, which takes `load_s` seconds."""
        self._started_at = time.monotonic()
        self._state = "loading"

    async def stop(self, deadline_s: float) -> None:
        """Refuse new requests and wait for those under way, up to the deadline."""
        self._state = "draining"
        end = time.monotonic() + deadline_s
        while self._num_under_way() and time.monotonic() < end:
            await asyncio.sleep(0.005)
        self._state = "stopped"

    def cards(self) -> Sequence[ModelCard]:
        """Return the made-up models."""
        return tuple(self._cards.values())

    def stats(self) -> Sequence[Stats]:
        """Return what was counted, per model."""
        state, progress = self._progress()
        return tuple(
            counts.stats(state, progress, self._auto_experts) for counts in self._counts.values()
        )

    def check_room(self, num_before: int) -> None:
        """Raise CapacityError if so many more would be too many."""
        self._check_capacity(num_before)

    async def stream(self, request: Request) -> Stream:
        """Recite the next scripts, or fail as they say."""
        card = self._card(request.model)
        experts = self._grant(request.options, card)
        self._check_capacity()
        ids = prompt_ids(request, card.context_length)
        self.requests.append(request)
        scripts = self._next_scripts(request.options.num_choices)
        is_over = False
        try:
            answer = self._recite(request, len(ids), scripts, card, experts)
            async with aclosing(answer) as pieces:
                async for piece in pieces:
                    yield piece
            is_over = True
        except MoestroError:
            is_over = True
            raise
        finally:
            if not is_over:
                self.aborted.append(request)

    async def tokenize(self, request: Request) -> list[int]:
        """Return the token ids of the prompt; messages become lines like `user: hello`."""
        card = self._card(request.model)
        return prompt_ids(request, card.context_length)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        self._card(model)
        return decode(token_ids)

    async def show_tokens(self, model: str, token_ids: Sequence[int]) -> list[str]:
        """Return each token as a person reads it."""
        self._card(model)
        return list(map(show, token_ids))

    async def _recite(
        self,
        request: Request,
        num_prompt: int,
        scripts: Sequence[Script],
        card: ModelCard,
        experts: float,
    ) -> Stream:
        counts, arrived = self._counts[card.id], time.monotonic()
        first = scripts[0]
        with counts.waiting():
            await asyncio.sleep(first.queue_s)
        if first.error is not None and first.error_after is None:
            raise first.error.with_traceback(None)
        began = time.monotonic()
        cached = min(first.cached_tokens, num_prompt)
        counts.add_prompt(num_prompt, cached)
        with counts.running():
            granted = None if experts == card.most_experts else experts
            yield Started(
                model=card.id, prompt_tokens=num_prompt, cached_tokens=cached, experts=granted
            )
            recitals = [
                Recital(index, script, request, card, experts, counts.add_token)
                for index, script in enumerate(scripts)
            ]
            async for chunk in interleave(recitals):
                yield chunk if request.options.wants_xray else _without_visits(chunk)
            now = time.monotonic()
            timing = Timing(queue_s=began - arrived, prefill_s=0.0, decode_s=now - began)
            yield Chunk(usage=total_usage(recitals, num_prompt, cached), timing=timing)

    def _next_scripts(self, num: int) -> list[Script]:
        first = self._num_taken
        self._num_taken += 1
        return [self._scripts[(first + choice) % len(self._scripts)] for choice in range(num)]

    def _card(self, model: str) -> ModelCard:
        state, _ = self._progress()
        if state != "ready":
            raise BackendError(f"the backend is {state}: try again in a moment")
        if model not in self._cards:
            known = ", ".join(self._cards)
            raise UnknownModelError(f"model {model[:100]!r} is not served here: choose {known}")
        return self._cards[model]

    def _grant(self, options: Options, card: ModelCard) -> float:
        fewest, most = card.fewest_experts, card.most_experts
        if options.experts == "min":
            return fewest
        if options.experts == "auto":
            return most if self._auto_experts is None else self._auto_experts
        experts = most if options.experts is None else options.experts
        if not fewest <= experts <= most:
            raise ConfigError(
                f"experts is {experts}: {card.id} takes {fewest} to {most} per token",
                param="experts",
            )
        return experts

    def _check_capacity(self, num_before: int = 0) -> None:
        num = self._num_under_way() + num_before
        if self._max_requests is not None and num >= self._max_requests:
            raise CapacityError(
                f"{num} requests are under way, limit {self._max_requests}:"
                f" try again in {self._retry_after_s:g} s",
                retry_after_s=self._retry_after_s,
            )

    def _num_under_way(self) -> int:
        return sum(counts.num_waiting + counts.num_running for counts in self._counts.values())

    def _progress(self) -> tuple[State, float]:
        if self._state != "loading":
            return self._state, 1.0
        since = time.monotonic() - self._started_at
        return ("loading", since / self._load_s) if since < self._load_s else ("ready", 1.0)


def _without_visits(chunk: Chunk) -> Chunk:
    return replace(chunk, tokens=tuple(replace(token, visits=()) for token in chunk.tokens))
