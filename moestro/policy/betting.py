"""Betting on the mean of bounded numbers: wealth that nobody can expect to make by chance.

Whoever bets, before each number is seen, that a mean is above zero while it is not, gains nothing
on average; so wealth of 1/a has a chance of at most a, for any distribution and any number of rows
(Waudby-Smith and Ramdas, arXiv 2010.09686). `bet` stakes so as to be rich at the last row, in the
spirit of bets that recalculate their target (Voracek and Orabona, arXiv 2505.22422); `Fortune`
never knows which row is the last. Next: monitor.py.
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
_LOG_CHANCES = np.linspace(math.log(1e-12), math.log(1 - 1e-9), 512)
# The stake, per standard deviation, that pays 1 with a given chance under the normal law.
_DELTAS = np.array(
    [NormalDist().pdf(NormalDist().inv_cdf(math.exp(c))) / math.exp(c) for c in _LOG_CHANCES]
)


def bet(values_NG: Floats, worst: float, level: float) -> Floats:
    """Return, for each of G columns, a p-value for "the mean is zero or less".

    No value is below -`worst`. Rows are used in the order given. What is staked depends on the past
    only, so the p-value is valid whatever the stake; the stake itself is the one that replicates,
    for normal numbers, a payment of 1/`level` if the sum is in its upper `level` tail.
    """
    num_rows, num_columns = values_NG.shape
    goal = -math.log(level)
    best_G = np.zeros(num_columns)
    open_G: NDArray[np.int64] = np.arange(num_columns)
    # A few made-up squares, of a quarter each, stand for those not seen yet.
    wealth_G: Floats = np.zeros(num_columns)
    squares_G: Floats = np.full(num_columns, 0.25)
    for row in range(num_rows):
        values_G = values_NG[row, open_G]
        spread_G = np.sqrt(squares_G * ((num_rows - row) / (row + 1)))
        stake_G = np.interp(wealth_G - goal, _LOG_CHANCES, _DELTAS) / np.maximum(spread_G, 1e-9)
        wealth_G += np.log1p(np.minimum(stake_G, LARGEST_STAKE / worst) * values_G)
        best_G[open_G] = np.maximum(best_G[open_G], wealth_G)
        squares_G += values_G**2
        has_won_G = wealth_G >= goal
        if has_won_G.any():
            # Who has won stops.
            open_G = open_G[~has_won_G]
            wealth_G, squares_G = wealth_G[~has_won_G], squares_G[~has_won_G]
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
