"""Counts what an engine does: totals since its start, and the same over a recent window.

Next: stats.py for what is told of it, engine.py for who counts.

Shapes: L MoE layers, E experts, K slots per token, T tokens of a step, N = K + 1.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moestro.api.stats import ExpertStats
from moestro.engine.runner import Gates

WINDOW_S = 60.0
_BUCKET_S = 1.0
_RATE_S = 10.0
# An expert with under this share of the mean load is starved.
_STARVED = 0.1
_MOST_UNCOUNTED = 64
_MOST_UNCOUNTED_TOKENS = 4096

Counts = NDArray[np.int64]


@dataclass
class _Bucket:
    """About a second of steps."""

    start_s: float
    prompt_tokens: int = 0
    generation_tokens: int = 0
    counts_LE: Counts = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    histogram_LN: Counts = field(default_factory=lambda: np.zeros((0, 0), np.int64))


class Meter:
    """Counts tokens and what the gates did with them."""

    def __init__(self, num_layers: int, num_experts: int, num_slots: int) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self._shape = (num_layers, num_experts)
        self._sizes = (num_layers, num_slots + 1)
        self._total_LE = np.zeros(self._shape, np.int64)
        self._buckets: deque[_Bucket] = deque()
        # The newest bucket's latest steps: a few together are counted as fast as one.
        self._uncounted: list[tuple[Gates, int]] = []
        self._num_uncounted = 0

    def add(
        self,
        now_s: float,
        prompt_tokens: int,
        generation_tokens: int,
        gates: Gates | None,
        num_tokens: int,
    ) -> None:
        """Count a step; the gates' first `num_tokens` tokens are real.

        Guesses that proved wrong are among those, as they were computed, but not generated.
        """
        self.prompt_tokens += prompt_tokens
        self.generation_tokens += generation_tokens
        bucket = self._bucket(now_s)
        bucket.prompt_tokens += prompt_tokens
        bucket.generation_tokens += generation_tokens
        if gates is None:
            return
        self._uncounted.append((gates, num_tokens))
        self._num_uncounted += num_tokens
        if len(self._uncounted) >= _MOST_UNCOUNTED or self._num_uncounted >= _MOST_UNCOUNTED_TOKENS:
            self._flush()

    def experts(self, now_s: float) -> ExpertStats:
        """Return what the gates did."""
        self._flush()
        recent = self._recent(now_s, WINDOW_S)
        window_LE, histogram_LN = np.zeros_like(self._total_LE), np.zeros(self._sizes, np.int64)
        for bucket in recent:
            window_LE += bucket.counts_LE
            histogram_LN += bucket.histogram_LN
        totals = _tuples(self._total_LE)
        num_tokens = int(histogram_LN.sum())
        if not num_tokens:
            return ExpertStats(tokens_LE=totals)
        mean_L = window_LE.mean(axis=1)
        return ExpertStats(
            tokens_LE=totals,
            window_LE=_tuples(window_LE),
            violation_L=tuple((window_LE.max(axis=1) / mean_L - 1).tolist()),
            starved_L=tuple((window_LE < _STARVED * mean_L[:, None]).sum(axis=1).tolist()),
            histogram=_tuples(histogram_LN),
            mean_experts=float(window_LE.sum()) / num_tokens,
        )

    def rates(self, now_s: float) -> tuple[float, float]:
        """Return tokens of prompts and of answers per second, of late."""
        recent = self._recent(now_s, _RATE_S)
        if not recent:
            return 0.0, 0.0
        seconds = max(now_s - recent[0].start_s, _BUCKET_S)
        prompt = sum(each.prompt_tokens for each in recent)
        generation = sum(each.generation_tokens for each in recent)
        return prompt / seconds, generation / seconds

    def _flush(self) -> None:
        """Count what is not counted yet into the newest bucket."""
        if not self._uncounted:
            return
        experts_LTK = _join((gates.experts_LTK, number) for gates, number in self._uncounted)
        is_used_LTK = _join((gates.is_used_LTK, number) for gates, number in self._uncounted)
        self._uncounted, self._num_uncounted = [], 0
        counts_LE = _count(experts_LTK, self._shape, is_used_LTK)
        self._total_LE += counts_LE
        bucket = self._buckets[-1]
        bucket.counts_LE += counts_LE
        bucket.histogram_LN += _count(is_used_LTK.sum(axis=2), self._sizes)

    def _bucket(self, now_s: float) -> _Bucket:
        if not self._buckets or now_s - self._buckets[-1].start_s >= _BUCKET_S:
            self._flush()
            self._buckets.append(
                _Bucket(
                    now_s,
                    counts_LE=np.zeros(self._shape, np.int64),
                    histogram_LN=np.zeros(self._sizes, np.int64),
                )
            )
        while now_s - self._buckets[0].start_s > WINDOW_S:
            self._buckets.popleft()
        return self._buckets[-1]

    def _recent(self, now_s: float, window_s: float) -> list[_Bucket]:
        return [bucket for bucket in self._buckets if now_s - bucket.start_s <= window_s]


def _join(steps: Iterable[tuple[Tensor, int]]) -> NDArray[Any]:
    """Put the real tokens of some steps behind each other."""
    # By torch, and cut only where there is something to cut: a call for each step costs more.
    parts = [each if each.shape[1] == number else each[:, :number] for each, number in steps]
    joined: NDArray[Any] = torch.cat(parts, dim=1).numpy(force=True)
    return joined


def _count(
    values_LX: Counts, shape: tuple[int, int], is_counted_LX: NDArray[np.bool_] | None = None
) -> Counts:
    """Count how often each value occurs in each layer."""
    num_layers, num_values = shape
    offset_L = np.arange(num_layers) * num_values
    flat = values_LX + offset_L.reshape(-1, *[1] * (values_LX.ndim - 1))
    chosen = flat.ravel() if is_counted_LX is None else flat[is_counted_LX]
    return np.bincount(chosen, minlength=num_layers * num_values).reshape(shape)


def _tuples(array: Counts) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in array.tolist())
