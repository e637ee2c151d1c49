"""Quality against cost: what choices score and cost as cost weighs more and more.

Knows estimates, scores and costs of rows. Next: measures.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_PAIR_POINTS = 41
# In units of score for the mean cost of the dearest model.
COST_WEIGHTS = (0.0, *(float(w) for w in np.geomspace(0.001, 2.0, 45)))


@dataclass(frozen=True)
class Point:
    """One choice and what comes of it; shares are by model.

    A pool's is how much cost weighs, a pair's the threshold on the estimated gain.
    """

    score: float
    cost_usd: float
    shares: tuple[float, ...]
    cost_weight: float | None = None
    threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the point as JSON has it."""
        return {**asdict(self), "shares": list(self.shares)}


def choose(estimates_NM: Floats, costs_NM: Floats, cost_weight: float) -> NDArray[np.int64]:
    """Return the model with the highest estimate less weighted cost; of equals the cheaper."""
    dearest = float(costs_NM.mean(0).max())
    unit_NM = costs_NM / dearest if dearest > 0 else costs_NM
    # A cost too small to matter decides between equal estimates.
    chosen: NDArray[np.int64] = np.argmax(estimates_NM - (cost_weight + 1e-9) * unit_NM, axis=1)
    return chosen


def pool_curve(estimates_NM: Floats, scores_NM: Floats, costs_NM: Floats) -> Sequence[Point]:
    """Return what choices score and cost at every weight of cost."""
    rows_N = np.arange(len(scores_NM))
    num_models = scores_NM.shape[1]
    points = []
    for weight in COST_WEIGHTS:
        chosen_N = choose(estimates_NM, costs_NM, weight)
        shares_M = np.bincount(chosen_N, minlength=num_models) / len(chosen_N)
        score = float(scores_NM[rows_N, chosen_N].mean())
        cost_usd = float(costs_NM[rows_N, chosen_N].mean())
        points.append(Point(score, cost_usd, tuple(map(float, shares_M)), cost_weight=weight))
    return points


def pair_curve(gains_N: Floats, scores_NM: Floats, costs_NM: Floats) -> Sequence[Point]:
    """Return what a pair scores and costs from never to always the strong model."""
    points = []
    for share in np.linspace(0.0, 1.0, NUM_PAIR_POINTS):
        threshold = float(np.quantile(gains_N, 1.0 - share)) if share else float(gains_N.max()) + 1
        is_strong_N = gains_N >= threshold
        chosen_N, rows_N = is_strong_N.astype(np.int64), np.arange(len(gains_N))
        points.append(
            Point(
                float(scores_NM[rows_N, chosen_N].mean()),
                float(costs_NM[rows_N, chosen_N].mean()),
                (float(1 - is_strong_N.mean()), float(is_strong_N.mean())),
                threshold=threshold,
            )
        )
    return points
