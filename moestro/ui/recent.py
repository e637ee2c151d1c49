"""What happened lately: waits for the first token, errors by kind, and levels over time.

Everything is bounded and none of it is text that a person or a model wrote. Next: watched.py.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from moestro.api.stats import Stats

MOST_WAITS = 512
MOST_ERROR_KINDS = 64
SAMPLE_SECONDS = 2.0
MOST_SAMPLES = 150
# A wait older than the charts are long says nothing about now.
HORIZON_S = SAMPLE_SECONDS * MOST_SAMPLES

_LEVELS = (
    "num_running", "num_waiting", "prompt_tokens_per_s", "generation_tokens_per_s", "cache_usage",
)  # fmt: skip


@dataclass(frozen=True)
class _Wait:
    at: float
    model: str
    seconds: float


@dataclass
class _Fault:
    count: int
    at: float


@dataclass(frozen=True)
class _Sample:
    number: int
    at: float
    levels: dict[str, dict[str, float | None]]


class Recent:
    """A record of the last minutes, in memory; times are ages, so clocks need not agree."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waits: deque[_Wait] = deque(maxlen=MOST_WAITS)
        self._faults: dict[tuple[str, str], _Fault] = {}
        self._samples: deque[_Sample] = deque(maxlen=MOST_SAMPLES)
        self._num_samples = 0

    def now(self) -> float:
        """Return the time by the clock that everything here is dated with."""
        return self._clock()

    def add_first_token(self, model: str, seconds: float) -> None:
        """Record how long a request waited for its first token."""
        self._waits.append(_Wait(self._clock(), model, seconds))

    def add_error(self, kind: str, model: str) -> None:
        """Count an error by its kind, like an exception's class name; never its message."""
        fault = self._faults.pop((kind, model), _Fault(0, 0.0))
        if len(self._faults) >= MOST_ERROR_KINDS:
            del self._faults[next(iter(self._faults))]
        self._faults[kind, model] = _Fault(fault.count + 1, self._clock())

    def add_sample(self, stats: Sequence[Stats]) -> None:
        """Record every model's levels at this moment."""
        levels = {each.model: self._levels(each) for each in stats}
        self._samples.append(_Sample(self._num_samples, self._clock(), levels))
        self._num_samples += 1

    def to_dict(self, since: int = 0) -> dict[str, Any]:
        """Return all of it as JSON takes it, with the samples from number `since` on.

        A `since` beyond the next number comes from before a restart, and gets them all.
        """
        now = self._clock()
        first = since if since <= self._num_samples else 0
        return {
            "next": self._num_samples,
            "sample_s": SAMPLE_SECONDS,
            "samples": [
                {"number": each.number, "age_s": now - each.at, "levels": each.levels}
                for each in self._samples
                if each.number >= first
            ],
            "errors": [
                {"kind": kind, "model": model, "count": fault.count, "age_s": now - fault.at}
                for (kind, model), fault in reversed(self._faults.items())
            ],
        }

    def first_token(self, model: str) -> dict[str, Any]:
        """Return a model's waits in the last minutes: how many, their median, 95th percentile."""
        waits = self._waits_of(model)
        return {
            "count": len(waits),
            "median_s": median(waits) if waits else None,
            "p95_s": waits[-(-len(waits) * 95 // 100) - 1] if waits else None,
        }

    def _levels(self, stats: Stats) -> dict[str, float | None]:
        levels: dict[str, float | None] = {name: getattr(stats, name) for name in _LEVELS}
        levels["first_token_s"] = self.first_token(stats.model)["median_s"]
        return levels

    def _waits_of(self, model: str) -> list[float]:
        oldest = self._clock() - HORIZON_S
        return sorted(
            each.seconds for each in self._waits if each.model == model and each.at >= oldest
        )
