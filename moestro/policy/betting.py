"""Betting on the mean of bounded numbers: wealth that nobody can expect to make by chance.

Whoever bets, before each number is seen, that a mean is above zero while it is not, gains nothing
on average; so wealth of 1/a has a chance of at most a, for any distribution and any number of rows
(Waudby-Smith and Ramdas, arXiv 2010.09686). `bet` stakes most of its coin so as to be rich at the
last row, in the spirit of bets that recalculate their target (Voracek and Orabona, arXiv
2505.22422); `Fortune` never knows which row is the last. Next: monitor.py.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Of what a single number can lose at most; all of it would end the game on one bad row.
LARGEST_STAKE = 0.9
# The part of `bet`'s coin that steady bettors have, and what each of them stakes, row after row.
_STEADY_SHARE = 0.2
_STEADY_STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.55])
# Made-up rows, and the mean of their squares: they stand for those not seen yet.
_MADE_UP, _SQUARE = 10, 0.1
_LOG_CHANCES = np.linspace(math.log(1e-12), math.log(1 - 1e-9), 512)
# The stake, per standard deviation, that pays 1 with a given chance under the normal law.
_DELTAS = np.array(
    [NormalDist().pdf(NormalDist().inv_cdf(math.exp(c))) / math.exp(c) for c in _LOG_CHANCES]
)


def bet(values_NG: Floats, worst: float, level: float) -> Floats:
    """Return, for each of G columns, a p-value for "the mean is zero or less".

    No value is below -`worst`. Rows are used in the order given. What is staked depends on the past
    only, so the p-value is valid whatever the stakes. Those of the bold bettor replicate, for
    normal numbers, a payment of what is missing of 1/`level` if the sum is in its upper tail.
    Steady ones win where the mean is so far above zero that only the bold one's bad luck could
    lose it.
    """
    num_rows, num_columns = values_NG.shape
    goal = -math.log(level)
    best_G = np.zeros(num_columns)
    open_G: NDArray[np.int64] = np.arange(num_columns)
    bold_G: Floats = np.full(num_columns, math.log(1.0 - _STEADY_SHARE))
    part = math.log(_STEADY_SHARE / len(_STEADY_STAKES))
    steady_KG: Floats = np.full((len(_STEADY_STAKES), num_columns), part)
    squares_G: Floats = np.full(num_columns, _MADE_UP * _SQUARE)
    for row in range(num_rows):
        values_G = values_NG[row, open_G]
        spread_G = np.sqrt(squares_G * ((num_rows - row) / (row + _MADE_UP)))
        missing_G = np.log(1.0 / level - np.exp(np.logaddexp.reduce(steady_KG)))
        stake_G = np.interp(bold_G - missing_G, _LOG_CHANCES, _DELTAS) / spread_G
        bold_G += np.log1p(np.minimum(stake_G, LARGEST_STAKE / worst) * values_G)
        steady_KG += np.log1p(_STEADY_STAKES[:, None] / worst * values_G)
        wealth_G = np.logaddexp(bold_G, np.logaddexp.reduce(steady_KG))
        best_G[open_G] = np.maximum(best_G[open_G], wealth_G)
        squares_G += values_G**2
        is_open_G = wealth_G < goal
        if not is_open_G.all():
            # Who has won stops.
            open_G, bold_G, squares_G = open_G[is_open_G], bold_G[is_open_G], squares_G[is_open_G]
            steady_KG = steady_KG[:, is_open_G]
            if not len(open_G):
                break
    return np.exp(-best_G)


class Fortune:
    """Wealth of B bettors who each stake a fixed fraction, and who start at every row.

    Its `log_wealth` is that of an e-process if no factor averages above 1, given all rows before
    it: the chance that it ever reaches log(1/a) is at most a (Ville). A mean of such bettors is
    one again only because all of them know the same past. Row t is given 1/(t(t+1)) of the first
    coin, so that a change after a long good time is seen too, at the price of a few rows (Shin,
    Ramdas and Rinaldo, "E-detectors", arXiv 2203.03532).
    """

    def __init__(self, num_bettors: int) -> None:
        self.num_rows = 0
        self._logs_B: Floats = np.full(num_bettors, -np.inf)

    def play(self, factors_B: ArrayLike) -> None:
        """Multiply each bettor's wealth by what a row made of it."""
        logs_B = np.log(np.asarray(factors_B, dtype=np.float64))
        if logs_B.shape != self._logs_B.shape:
            raise ValueError(f"{logs_B.size} factors for {self._logs_B.size} bettors")
        self.num_rows += 1
        start = -math.log(self.num_rows * (self.num_rows + 1.0)) - math.log(logs_B.size or 1)
        self._logs_B = np.logaddexp(self._logs_B, start) + logs_B

    @property
    def log_wealth(self) -> float:
        """The logarithm of all wealth, the coins not yet staked among it."""
        unspent = -math.log(self.num_rows + 1.0)
        return float(np.logaddexp.reduce(self._logs_B, initial=unspent))

    @property
    def odds(self) -> float:
        """The wealth itself: 1 where nothing was won."""
        return math.exp(min(self.log_wealth, 700.0))

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON has it."""
        # JSON has no infinity: a bettor who has not begun yet is null.
        logs = [log if math.isfinite(log) else None for log in self._logs_B.tolist()]
        return {"num": self.num_rows, "logs": logs}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], num_bettors: int) -> Self:
        """Rebuild it from `to_dict`; ValueError where it is for another number of bettors."""
        logs = [-math.inf if log is None else float(log) for log in state["logs"]]
        if len(logs) != num_bettors or not int(state["num"]) >= 0:
            raise ValueError(f"{len(logs)} logs for {num_bettors} bettors")
        fortune = cls(num_bettors)
        fortune.num_rows, fortune._logs_B = int(state["num"]), np.array(logs, dtype=np.float64)
        return fortune
