"""An engine's counts over all its lives: a restart must not set a counter back. Next: local.py.

Shapes: L MoE layers, E experts.
"""

from dataclasses import replace

from moestro.api.stats import ExpertStats
from moestro.engine.stats import EngineStats

_COUNTERS = (
    "prompt_tokens", "generation_tokens", "prefix_queries", "prefix_hits", "preemptions",
    "num_drafts", "draft_tokens", "accepted_draft_tokens",
)  # fmt: skip


class Tally:
    """Adds what earlier lives counted to what the present one does."""

    def __init__(self) -> None:
        self._past = EngineStats()
        self._last = EngineStats()
        self._life = 0

    def update(self, stats: EngineStats | None, life: int) -> EngineStats:
        """Take the latest counts, of the life with this number; return those of all lives."""
        if life != self._life:
            gone = EngineStats(experts=ExpertStats(tokens_LE=self._last.experts.tokens_LE))
            counts = {name: getattr(self._last, name) for name in _COUNTERS}
            self._past = _add(replace(gone, **counts), self._past)
            self._last, self._life = EngineStats(), life
        self._last = stats or self._last
        return _add(self._last, self._past)


def _add(stats: EngineStats, past: EngineStats) -> EngineStats:
    counts = {name: getattr(stats, name) + getattr(past, name) for name in _COUNTERS}
    tokens_LE = stats.experts.tokens_LE or past.experts.tokens_LE
    if stats.experts.tokens_LE and past.experts.tokens_LE:
        rows = zip(stats.experts.tokens_LE, past.experts.tokens_LE, strict=True)
        tokens_LE = tuple(tuple(map(sum, zip(*row, strict=True))) for row in rows)
    return replace(stats, **counts, experts=replace(stats.experts, tokens_LE=tokens_LE))
