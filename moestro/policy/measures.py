"""How good a policy is on recorded outcomes: RouteLLM's figures for a pair, and a pool's.

Every figure has a 95 % bootstrap interval over rows. Knows scores and signals, not where they come
from. Next: report.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NUM_RESAMPLES = 1000
_QUANTILES = (0.025, 0.975)
# All at once, the signs of many rows would take much memory.
_NUM_FLIPS, _FLIPS_AT_ONCE = 10_000, 500


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return value, low and high."""
        return asdict(self)


@dataclass(frozen=True)
class Curve:
    """The mean score against the share of requests sent to the strong model, from 0 to 1."""

    shares: Floats
    scores: Floats

    def apgr(self) -> float:
        """Return the mean performance gap recovered over all shares."""
        return float(np.trapezoid(self._recovered(), self.shares))

    def share_for_gap(self, recovered: float) -> float:
        """Return the smallest strong share that recovers this part of the gap."""
        return self._first(self._recovered(), recovered)

    def share_for_quality(self, kept: float) -> float:
        """Return the smallest strong share with this part of the strong model's mean score."""
        return self._first(self.scores, kept * self.scores[-1])

    def _recovered(self) -> Floats:
        gap = self.scores[-1] - self.scores[0]
        if gap <= 0:
            return np.full(len(self.scores), np.nan)
        recovered: Floats = (self.scores - self.scores[0]) / gap
        return recovered

    def _first(self, values: Floats, enough: float) -> float:
        reached = np.flatnonzero(values >= enough - 1e-12)
        if not len(reached):
            return float("nan")
        place = int(reached[0])
        if place == 0:
            return 0.0
        # Between two points lie requests of one signal, sent in no order.
        below, above = values[place - 1], values[place]
        part = min(1.0, (enough - below) / (above - below))
        return float(self.shares[place - 1] + part * (self.shares[place] - self.shares[place - 1]))


PAIR_FIGURES: dict[str, Callable[[Curve], float]] = {
    "apgr": Curve.apgr,
    "cpt50": lambda curve: curve.share_for_gap(0.5),
    "cpt80": lambda curve: curve.share_for_gap(0.8),
    "strong_share_at_95": lambda curve: curve.share_for_quality(0.95),
}


class Ranking:
    """Requests in the order in which a signal sends them to the strong model, largest first."""

    def __init__(self, signal_N: Floats, weak_N: Floats, strong_N: Floats) -> None:
        self._order_N = np.argsort(-signal_N, kind="stable")
        ordered = signal_N[self._order_N]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._gains_N = (strong_N - weak_N)[self._order_N]
        self._weak_N = weak_N[self._order_N]

    def curve(self, weights_N: Floats | None = None) -> Curve:
        """Return the curve, every row counting as often as `weights_N` says."""
        order = self._order_N
        w = np.ones(len(order)) if weights_N is None else weights_N[order]
        total = w.sum()
        shares = np.cumsum(np.add.reduceat(w, self._starts)) / total
        gains = np.cumsum(np.add.reduceat(w * self._gains_N, self._starts)) / total
        weak = float((w * self._weak_N).sum() / total)
        return Curve(np.r_[0.0, shares], np.r_[0.0, gains] + weak)


def measure_pair(
    signal_N: Floats, weak_N: Floats, strong_N: Floats, seed: int = 0
) -> dict[str, Figure]:
    """Measure the order that a signal gives; rows of one signal count as shuffled."""
    ranking = Ranking(signal_N, weak_N, strong_N)
    rows = [_pair_values(ranking.curve())]
    rows += [_pair_values(ranking.curve(w_N)) for w_N in _resamples(len(signal_N), seed)]
    values = np.array(rows)
    return {name: figure(values[:, place]) for place, name in enumerate(PAIR_FIGURES)}


def measure_means(values_NK: Floats, seed: int = 0) -> list[Figure]:
    """Return the mean of each column over rows, with its interval."""
    rows = [values_NK.mean(0)]
    rows += [w_N @ values_NK / len(w_N) for w_N in _resamples(len(values_NK), seed)]
    return [figure(column) for column in np.array(rows).T]


def paired_p(first_N: Floats, second_N: Floats, seed: int = 0) -> float:
    """Return the chance, two-sided, of so large a mean difference if signs were coin flips."""
    difference_N = first_N - second_N
    observed = abs(difference_N.sum())
    draw = np.random.default_rng(seed)
    changed = difference_N[difference_N != 0]
    extreme = 0
    for _ in range(_NUM_FLIPS // _FLIPS_AT_ONCE):
        signs = draw.integers(0, 2, size=(_FLIPS_AT_ONCE, len(changed)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ changed) >= observed - 1e-9).sum())
    return (extreme + 1) / (_NUM_FLIPS + 1)


def figure(values: Sequence[float] | Floats) -> Figure:
    """Make a figure of a value followed by what resamples give; the undefined are left out."""
    values = np.asarray(values, dtype=np.float64)
    drawn = values[1:][np.isfinite(values[1:])]
    value = float(values[0]) if np.isfinite(values[0]) else None
    if value is None or not len(drawn):
        return Figure(value, None, None)
    low, high = np.quantile(drawn, _QUANTILES)
    return Figure(value, float(low), float(high))


def _pair_values(curve: Curve) -> list[float]:
    return [measure(curve) for measure in PAIR_FIGURES.values()]


def _resamples(num_rows: int, seed: int) -> list[Floats]:
    draw = np.random.default_rng(seed)
    return [
        np.bincount(draw.integers(0, num_rows, num_rows), minlength=num_rows).astype(np.float64)
        for _ in range(NUM_RESAMPLES)
    ]
