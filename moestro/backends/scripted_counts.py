"""What a scripted backend counts of one model, in the shape of a real engine's statistics.

Knows no scripts. Next: scripted.py.

Shapes: L MoE layers, E experts, W tokens of the recent window.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from moestro.api.cards import ModelCard
from moestro.api.chunks import Token
from moestro.api.stats import ExpertStats, State, Stats

# A token's experts, by layer.
Layers = tuple[tuple[int, ...], ...]

_WINDOW_TOKENS = 2000
_RATE_S = 5.0


class Counts:
    """Counters of one model, and its last tokens' experts."""

    def __init__(self, card: ModelCard) -> None:
        self.num_waiting = 0
        self.num_running = 0
        self._card = card
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._generated_tokens = 0
        self._total_LE: Counter[tuple[int, int]] = Counter()
        # When each token came, and its experts.
        self._window_W: deque[tuple[float, Layers]] = deque(maxlen=_WINDOW_TOKENS)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a request in the queue."""
        self.num_waiting += 1
        try:
            yield
        finally:
            self.num_waiting -= 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request that is being answered."""
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1

    def add_prompt(self, num_tokens: int, num_cached: int) -> None:
        """Count a prompt."""
        self._prompt_tokens += num_tokens
        self._cached_tokens += num_cached

    def add_token(self, token: Token) -> None:
        """Count a token of an answer and the experts that it visited."""
        self._generated_tokens += 1
        layers = tuple(tuple(visit.expert for visit in uses) for uses in token.visits)
        self._window_W.append((time.monotonic(), layers))
        self._total_LE.update(
            (layer, expert) for layer, uses in enumerate(layers) for expert in uses
        )

    def stats(self, state: State, progress: float, experts_level: float | None) -> Stats:
        """Return all of it."""
        since = time.monotonic() - _RATE_S
        # At one moment: tests look from another thread than the one that counts.
        window_W = tuple(self._window_W)
        num_recent = sum(moment >= since for moment, _ in window_W)
        return Stats(
            model=self._card.id,
            state=state,
            progress=progress,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            cache_usage=min(1.0, 0.02 * self.num_running),
            generation_tokens_per_s=num_recent / _RATE_S,
            experts_level=experts_level,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generated_tokens,
            prefix_queries=self._prompt_tokens,
            prefix_hits=self._cached_tokens,
            experts=self._expert_stats([layers for _, layers in window_W]),
        )

    def _expert_stats(self, window_W: Sequence[Layers]) -> ExpertStats:
        num_layers, num_experts = self._card.num_moe_layers, self._card.num_experts
        window_LE: Counter[tuple[int, int]] = Counter()
        sizes = [[0] * (self._card.most_experts + 1) for _ in range(num_layers)]
        for layers in window_W:
            for layer, uses in enumerate(layers):
                window_LE.update((layer, expert) for expert in uses)
                sizes[layer][len(uses)] += 1
        rows = _rows(window_LE, num_layers, num_experts)
        num_tokens = len(window_W)
        has_experts = num_tokens and num_layers
        return ExpertStats(
            tokens_LE=_rows(self._total_LE, num_layers, num_experts),
            window_LE=rows,
            violation_L=tuple(max(row) * num_experts / max(1, sum(row)) - 1 for row in rows),
            starved_L=tuple(
                sum(load * num_experts < 0.1 * sum(row) for load in row) for row in rows
            ),
            histogram=tuple(map(tuple, sizes)),
            mean_experts=window_LE.total() / num_tokens / num_layers if has_experts else None,
        )


def _rows(
    loads: Counter[tuple[int, int]], num_layers: int, num_experts: int
) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(loads[layer, expert] for expert in range(num_experts)) for layer in range(num_layers)
    )
