"""The floor: the cheapest threshold that keeps a stated share of the strongest model's quality.

Learn then test (Angelopoulos et al., arXiv 2110.01052): from always-strongest down a fixed path of
ever cheaper thresholds, each is tested by betting.py, and the first that fails ends the walk. So
the chance that the threshold chosen breaks the floor is at most 1 - confidence, for any number of
rows and any distribution, as long as traffic is like the rows. Knows scores, not models. Next:
betting.py.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError, DataError
from moestro.policy.betting import LARGEST_STAKE, bet

Floats = NDArray[np.float64]

METHOD = "learn-then-test, fixed sequence, betting on paired scores"
# Where a gain, in -1..1, is cut: fixed before any row is seen, as the test asks. The first sends
# every request to the strongest model, the last none.
GRID = np.linspace(-1.0, 1.002, 1002)
# Thresholds tested together: most of a path is never walked.
_STRIDE = 64
# Of rows said to be needed: how often as many shall do, and how many more than a normal test
# betting takes for that (1.3 times at 2,545 rows, 1.5 at 3,937, 2 at 328; docs/log.md).
_PASSING, _BETTING = 0.8, 1.5


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a floor asks for.

    `horizon` is the number of requests whose own average shall keep the floor: by default as many
    as there are calibration rows. `math.inf` promises it of the average over endless traffic only.
    """

    floor: float = 0.95
    confidence: float = 0.95
    horizon: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.floor <= 1.0:
            raise ConfigError(f"floor is {self.floor:g}: give a share above 0 and at most 1")
        if not 0.5 <= self.confidence < 1.0:
            raise ConfigError(
                f"confidence is {self.confidence:g}: give a probability of at least 0.5, below 1"
            )
        if self.horizon is not None and not self.horizon >= 1:
            raise ConfigError(f"horizon is {self.horizon:g}: give a number of requests from 1 on")

    def level(self, num_rows: int) -> float:
        """Return the error rate of the test, stricter where finite traffic is to keep the floor.

        The average of m requests strays by itself: the difference of two averages, of n and of m,
        is sqrt(1 + n/m) times as wide as that of one. This step alone leans on the normal law.
        """
        normal = NormalDist()
        horizon = num_rows if self.horizon is None else self.horizon
        width = math.sqrt(1.0 + num_rows / horizon)
        return normal.cdf(-normal.inv_cdf(self.confidence) * width)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A threshold and why it may be trusted; `index` is its place on the path, 0 the strongest."""

    index: int
    threshold: float
    floor: float
    confidence: float
    level: float
    num_rows: int
    quality: float
    strongest_quality: float
    quality_kept: float
    strong_share: float
    p_value: float
    num_tested: int
    num_rows_needed: int | None
    method: str = METHOD

    @property
    def is_always_strongest(self) -> bool:
        """Whether no cheaper threshold could be shown to keep the floor."""
        return self.index == 0

    def say(self) -> str:
        """Put the promise in words."""
        share, sure = f"{self.floor:.4g}", f"{self.confidence:.4g}"
        if not self.is_always_strongest:
            return (
                f"Keeps at least {share} of the strongest model's quality with confidence {sure}, "
                f"on traffic like the {self.num_rows:,} calibration rows: there it kept "
                f"{self.quality_kept:.3f} with {self.strong_share:.1%} of requests to the strongest"
            )
        more = "more rows would not help: the cheaper models are not good enough"
        if self.num_rows_needed is not None:
            more = f"about {self.num_rows_needed:,} rows like these would likely be needed"
        return (
            f"Always the strongest model: {self.num_rows:,} calibration rows do not show with "
            f"confidence {sure} that any cheaper choice keeps {share} of its quality; {more}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what policy.json keeps."""
        return {
            **asdict(self),
            "is_always_strongest": self.is_always_strongest,
            "promise": self.say(),
        }


def calibrate_pair(
    signal_N: Floats, weak_N: Floats, strong_N: Floats, promise: Promise, grid: Floats = GRID
) -> Floor:
    """Choose the threshold of a pair: requests with a signal at or above it go to the strong model.

    `grid` rises, and must not come from the rows given.
    """
    signal_N = _checked(signal_N, "signal", bounded=False)
    weak_N, strong_N = _checked(weak_N, "weak"), _checked(strong_N, "strong")
    _same_length(signal_N, weak_N, strong_N)

    def served(start: int, stop: int) -> tuple[Floats, Floats]:
        is_strong_NG = signal_N[:, None] >= grid[None, start:stop]
        is_strong_NG[:, :1] |= start == 0
        return np.where(is_strong_NG, strong_N[:, None], weak_N[:, None]), is_strong_NG.mean(0)

    return _walk(served, strong_N, grid, promise)


def calibrate_path(
    served_NG: Floats, is_strong_NG: NDArray[np.bool_], grid: Floats, promise: Promise
) -> Floor:
    """Choose a point of any policy's path, from always-strongest (first column) to cheapest.

    `served_NG` holds the score of the model that point G of the path would ask for row N.
    """
    served_NG = np.asarray(served_NG, dtype=np.float64)
    if served_NG.ndim != 2 or served_NG.shape != np.shape(is_strong_NG):
        raise DataError(
            f"a path has scores of shape {served_NG.shape} and choices of shape "
            f"{np.shape(is_strong_NG)}: give one of each for every row and every threshold"
        )
    if served_NG.shape[1] != len(grid) or not len(grid):
        raise DataError(f"a path of {served_NG.shape[1]} points has {len(grid)} thresholds")
    _checked(served_NG.ravel(), "served")
    if not np.all(is_strong_NG[:, 0]):
        raise DataError("a path must begin with the strongest model for every request")

    def served(start: int, stop: int) -> tuple[Floats, Floats]:
        return served_NG[:, start:stop], is_strong_NG[:, start:stop].mean(0)

    return _walk(served, served_NG[:, 0], np.asarray(grid, dtype=np.float64), promise)


def hindsight_pair(
    signal_N: Floats, weak_N: Floats, strong_N: Floats, floor: float
) -> tuple[float, float]:
    """Return the threshold that one would have chosen knowing these scores, and its strong share.

    That is the smallest share of strong calls, by this signal, that keeps the floor.
    """
    order = np.argsort(-signal_N, kind="stable")
    gains_N = (strong_N - weak_N)[order]
    quality = (weak_N.sum() + np.concatenate([[0.0], np.cumsum(gains_N)])) / len(weak_N)
    enough = np.flatnonzero(quality >= floor * strong_N.mean() - 1e-12)
    num_strong = int(enough[0]) if len(enough) else len(weak_N)
    threshold = float(signal_N[order[num_strong - 1]]) if num_strong else float("inf")
    return threshold, num_strong / len(weak_N)


def _walk(
    served: Callable[[int, int], tuple[Floats, Floats]],
    strong_N: Floats,
    grid: Floats,
    promise: Promise,
) -> Floor:
    num_rows = len(strong_N)
    level = promise.level(num_rows)
    # Whoever orders their file by subject shall not order the bets by it.
    order_N = np.random.default_rng(num_rows).permutation(num_rows)
    chosen, p_value, rows_needed = 0, 0.0, math.inf
    last_N1, last_p = np.full((num_rows, 1), math.nan), 1.0
    for start in range(1, len(grid), _STRIDE):
        served_NG, _ = served(start, start + _STRIDE)
        margin_NG = served_NG - promise.floor * strong_N[:, None]
        # Thresholds that part no rows anew have the p-value of the one before.
        is_new_G = (served_NG != np.hstack([last_N1, served_NG[:, :-1]])).any(0)
        found = bet(margin_NG[np.ix_(order_N, is_new_G)], promise.floor, level)
        p_values_G = np.append(last_p, found)[np.cumsum(is_new_G)]
        last_N1, last_p = served_NG[:, -1:], float(p_values_G[-1])
        failed = np.flatnonzero(p_values_G > level)
        num_passed = int(failed[0]) if len(failed) else len(p_values_G)
        if num_passed:
            chosen, p_value = start + num_passed - 1, float(p_values_G[num_passed - 1])
        rows_needed = min(rows_needed, _rows_needed(margin_NG, promise.floor, level))
        if len(failed):
            break
    num_tested = min(chosen + 1, len(grid) - 1)
    served_N1, share = served(chosen, chosen + 1)
    quality, strongest = float(served_N1.mean()), float(strong_N.mean())
    return Floor(
        index=chosen,
        threshold=float(grid[chosen]),
        floor=promise.floor,
        confidence=promise.confidence,
        level=level,
        num_rows=num_rows,
        quality=quality,
        strongest_quality=strongest,
        quality_kept=quality / strongest if strongest else 1.0,
        strong_share=float(share[0]),
        p_value=p_value,
        num_tested=num_tested,
        num_rows_needed=None
        if chosen or not math.isfinite(rows_needed)
        else max(math.ceil(rows_needed), num_rows + 1),
    )


def _rows_needed(margin_NG: Floats, floor: float, level: float) -> float:
    """Estimate how many rows would let the first point of a path pass four times out of five.

    A normal test's number, which betting needs more than, and at least that of the largest stake
    won again and again.
    """
    mean, spread = float(margin_NG[:, 0].mean()), float(margin_NG[:, 0].std())
    if mean <= 0:
        return math.inf
    # Few rows without a loss do not mean that there is none: one more is made up.
    spread = math.hypot(spread, floor / math.sqrt(len(margin_NG)))
    normal = NormalDist()
    distance = normal.inv_cdf(1 - level) + normal.inv_cdf(_PASSING)
    by_spread = (distance * spread / mean) ** 2
    by_stake = -math.log(level) / math.log1p(LARGEST_STAKE / floor * mean)
    return _BETTING * max(by_spread, by_stake)


def _checked(values_N: Floats, name: str, bounded: bool = True) -> Floats:
    values_N = np.asarray(values_N, dtype=np.float64)
    if not values_N.size:
        raise DataError("there are no rows to calibrate on: give outcomes")
    bad = ~np.isfinite(values_N)
    if bounded:
        bad |= (values_N < 0) | (values_N > 1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        limits = "a score from 0 to 1" if bounded else "a finite number"
        raise DataError(f"{name} is {values_N[row]:g} in row {row + 1}: give {limits}")
    return values_N


def _same_length(*columns: Floats) -> None:
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise DataError(f"columns have {sorted(lengths)} rows: give one value of each a row")
