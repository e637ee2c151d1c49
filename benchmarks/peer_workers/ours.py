"""Moestro's engine in this process, loaded and stepped as the server's worker does it."""

import dataclasses
import statistics
import time
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from protocol import THREADS, Decoded, serve

from moestro import __version__
from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.load import load_engine
from moestro.engine.request import EngineRequest, FailEvent, TokensEvent
from moestro.ops.choose import chosen_kernels

# What all tasks together keep: prompts of 4,096 and 8 x 128 tokens, a new one of 4,096, answers.
_CACHE_TOKENS = 11_264
# What a stream may write while the others' prompts are read, a little in each step.
_ROOM = 512


class Ours:
    """An engine, asked for one thing at a time."""

    def __init__(self, folder: str) -> None:
        self._config = EngineConfig(
            num_threads=THREADS,
            cache=CacheConfig(num_tokens=_CACHE_TOKENS),
            draft=DraftConfig(mode="off"),
        )
        self._engine = load_engine(Path(folder), self._config, (), lambda stage, share: None)
        self.vocab_size = self._engine.model.config.vocab_size
        chosen = chosen_kernels()
        self.about: dict[str, Any] = {
            "version": __version__,
            "threads": THREADS,
            "kernels": f"{chosen.kernels.name}: {chosen.reason}",
        }
        self._numbers = iter(range(10**9))

    def prefill(self, prompt: list[int], is_batch_invariant: bool = True) -> float:
        """Return the seconds from a prompt to the token that follows it."""
        engine = self._engine if is_batch_invariant else self._free_engine
        start = time.perf_counter()
        self._submit(prompt, engine, max_tokens=1)
        while engine.has_work:
            _step(engine)
        return time.perf_counter() - start

    @cached_property
    def _free_engine(self) -> Engine:
        """The same model in an engine whose bits may depend on what else is in a step."""
        config = dataclasses.replace(self._config, is_batch_invariant=False)
        return Engine(self._engine.model, config)

    def decode(
        self,
        prompts: list[list[int]],
        steps: int,
        experts: float | None = None,
        counts_experts: bool = False,
    ) -> Decoded:
        """Continue all prompts at once, greedily; the engine keeps them in its cache."""
        # Some streams begin while others' prompts are read: all must last until the end.
        wishes = {"max_tokens": steps + _ROOM, "experts": experts, "wants_xray": counts_experts}
        names = [self._submit(prompt, self._engine, **wishes) for prompt in prompts]
        begun: set[str] = set()
        while len(begun) < len(names):
            begun |= {event.request_id for event in _step(self._engine)}
        streams: dict[str, list[int]] = {name: [] for name in names}
        visits: list[list[TokensEvent]] = []
        start = time.perf_counter()
        while any(len(stream) < steps for stream in streams.values()):
            if not self._engine.has_work:
                raise SystemExit(f"an answer ended before the others had {steps} tokens")
            visits.append(_step(self._engine))
            for event in visits[-1]:
                streams[event.request_id].extend(score.token_id for score in event.scores)
        seconds = time.perf_counter() - start
        for name in names:
            self._engine.abort(name)
        distinct = count_distinct(visits) if counts_experts else None
        return Decoded(seconds, list(streams.values()), distinct)

    def _submit(self, prompt: list[int], engine: Engine, **wishes: Any) -> str:
        name = f"request-{next(self._numbers)}"
        greedy = Sampling(temperature=0, ignore_eos=True)
        engine.submit(EngineRequest(id=name, prompt=tuple(prompt), sampling=greedy, **wishes))
        return name


def _step(engine: Engine) -> list[TokensEvent]:
    events = engine.step()
    for event in events:
        if isinstance(event, FailEvent):
            raise SystemExit(event.message)
    return [event for event in events if isinstance(event, TokensEvent)]


def count_distinct(steps: list[list[TokensEvent]]) -> float:
    """Return how many experts of a layer the tokens of one step visit, on average."""
    counts = []
    for events in steps:
        # A burst is several: all streams have as many tokens.
        tokens = zip(*(event.visits for event in events), strict=True)
        for layer in chain.from_iterable(zip(*each, strict=True) for each in tokens):
            counts.append(len({expert for token in layer for expert, _ in token}))
    return statistics.mean(counts)


if __name__ == "__main__":
    serve(Ours)
