"""Claim: the floor holds on rows that neither fit nor calibration saw, and its loss is noticed.

Every row's gain is estimated by a fit that lacked it. A random half of the rows calibrates, the
other half is served; 500 times. The watches start on MMLU and are put to GSM8K, alone in 200 orders
and as they are wired into a gateway of two workers in 10. Foreseen before measuring: violations 3 %
(default promise) and 10 % (endless traffic), strong calls 13 points above hindsight on MMLU, 28 on
GSM8K, 15 on nine models; floor lost after 60 audits, false alarms 1 %; shift seen in 70 requests,
in 100 by the gateway, which counts them 16 at a time at each worker; 2,000 as before, no alarm.

    python benchmarks/floor.py PATH_TO_RECORDINGS [--only-watches]
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from experiment import said, write_result
from floor_gateway import fallback_after
from numpy.typing import NDArray
from policy import STRONG, WEAK, by_row, estimates

from moestro.policy.build import build_pair, build_pool, request_costs
from moestro.policy.calibrate import calibrate
from moestro.policy.guarantee import (
    GRID,
    Floor,
    Promise,
    calibrate_pair,
    calibrate_path,
    hindsight_pair,
)
from moestro.policy.monitor import FloorMonitor
from moestro.policy.outcome_files import read_outcomes
from moestro.policy.outcomes import Outcomes
from moestro.policy.policy import Policy
from moestro.policy.prices import Price, read_prices
from moestro.policy.shift import ShiftMonitor

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
PROMISES = {"default": Promise(), "endless": Promise(horizon=math.inf)}
NUM_FOLDS = 5
NUM_ORDERS = 200
NUM_SERVED = 10


def main() -> None:
    """Measure what the recordings at hand allow, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--only-watches", action="store_true")
    args = parser.parse_args()
    folder = args.recordings
    mmlu, gsm8k = sorted(folder.glob("routellm/mmlu/*.csv")), folder / "routellm/gsm8k.csv"
    nine = folder / "nine_models"
    if not (mmlu and gsm8k.exists() and nine.exists()):
        sys.exit(f"{folder}: lacks routellm/mmlu, routellm/gsm8k.csv or nine_models")
    others, known = read_outcomes([gsm8k]).of([WEAK, STRONG]), read_outcomes(mmlu)
    known = known.of([WEAK, STRONG])
    pool = read_outcomes([nine / "outcomes.jsonl"])
    result: dict[str, Any] = {"num_splits": args.splits}
    sets: dict[str, Callable[[], Served]] = {
        "gsm8k": lambda: PairServed(others),
        "mmlu": lambda: PairServed(known),
        "nine_models": lambda: PoolServed(pool, read_prices(nine / "models.json")),
    }
    with said("watches"):
        result["watches"] = watch(known, others, min(args.splits, NUM_ORDERS))
    if args.only_watches:
        print(write_result("floor_watches", result))
        return
    for name, make in sets.items():
        with said(f"{name}: estimates"):
            served = make()
        result[name] = {}
        for promised, promise in PROMISES.items():
            with said(f"{name}: splits, {promised}"):
                result[name][promised] = split(served, promise, args.splits)
            show(name, promised, result[name][promised])
            write_result("floor", result)
    print(write_result("floor", result))


class PairServed:
    """What a pair serves at every threshold, by gains that fits without these rows estimated.

    From the weak model's answers where they were recorded and the fit goes by them.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        self.weak_N, self.strong_N = outcomes.scores_NM.T
        self.signal_N = np.zeros(len(self.strong_N))
        folds_N = by_row(outcomes)
        for fold in range(NUM_FOLDS):
            outside = np.flatnonzero(folds_N == fold)
            inside = outcomes.rows(np.flatnonzero(folds_N != fold))
            policy = build_pair(inside, WEAK, STRONG, {})
            unseen = outcomes.rows(outside)
            answers = unseen.answers_of(WEAK)
            self.signal_N[outside] = (
                policy.gains(unseen.prompts)[:, 0]
                if policy.verifier is None or answers is None
                else policy.answer_gains(unseen.prompts, answers)
            )

    def calibrate(self, rows: Rows, promise: Promise) -> Floor:
        """Choose a threshold on some rows."""
        return calibrate_pair(self.signal_N[rows], self.weak_N[rows], self.strong_N[rows], promise)

    def at(self, floor: Floor, rows: Rows) -> tuple[Floats, float]:
        """Return the scores of other rows, and the share that the strong model answers."""
        is_strong_N = self.signal_N[rows] >= floor.threshold
        is_strong_N |= floor.is_always_strongest
        served_N = np.where(is_strong_N, self.strong_N[rows], self.weak_N[rows])
        return served_N, float(is_strong_N.mean())

    def hindsight(self, rows: Rows, floor: float) -> float:
        """Return the least share of strong calls that keeps the floor, knowing the scores."""
        return hindsight_pair(self.signal_N[rows], self.weak_N[rows], self.strong_N[rows], floor)[1]


class PoolServed:
    """What a pool serves: the cheapest model whose estimated loss stays below the threshold."""

    def __init__(self, outcomes: Outcomes, prices: dict[str, Price]) -> None:
        _, places = np.unique(outcomes.prompts, return_index=True)
        outcomes = outcomes.rows(np.sort(places))
        rows_N, folds_N = np.arange(len(outcomes.prompts)), by_row(outcomes)
        estimates_NM = np.zeros_like(outcomes.scores_NM)
        for fold in range(NUM_FOLDS):
            outside = np.flatnonzero(folds_N == fold)
            policy = build_pool(outcomes.rows(np.flatnonzero(folds_N != fold)), prices)
            prompts = outcomes.rows(outside).prompts
            estimates_NM[outside] = estimates(policy, outcomes.models, prompts)
        # One strongest model for all folds: that of the last one.
        strongest = outcomes.models.index(policy.strongest)
        places_M = [policy.models.index(m) for m in outcomes.models]
        costs_NM = request_costs(policy, outcomes)[:, places_M]
        losses_NM = estimates_NM[:, strongest, None] - estimates_NM
        chosen_NG = np.full((len(rows_N), len(GRID)), strongest)
        for place, threshold in enumerate(GRID[1:], 1):
            prices_NM = np.where(losses_NM < threshold, costs_NM, np.inf)
            any_N = np.isfinite(prices_NM).any(1)
            chosen_NG[any_N, place] = prices_NM[any_N].argmin(1)
        self.served_NG = outcomes.scores_NM[rows_N[:, None], chosen_NG]
        self.is_strong_NG = chosen_NG == strongest
        self.strong_N = outcomes.scores_NM[:, strongest]

    def calibrate(self, rows: Rows, promise: Promise) -> Floor:
        """Choose a threshold on some rows."""
        return calibrate_path(self.served_NG[rows], self.is_strong_NG[rows], GRID, promise)

    def at(self, floor: Floor, rows: Rows) -> tuple[Floats, float]:
        """Return the scores of other rows, and the share that the strongest model answers."""
        share = float(self.is_strong_NG[rows, floor.index].mean())
        return self.served_NG[rows, floor.index], share

    def hindsight(self, rows: Rows, floor: float) -> float:
        """Return the least share of strongest calls that keeps the floor, knowing the scores."""
        quality_G = self.served_NG[rows].mean(0)
        enough_G = quality_G >= floor * self.strong_N[rows].mean() - 1e-12
        return float(self.is_strong_NG[rows].mean(0)[enough_G].min())


Served = PairServed | PoolServed


def split(served: Served, promise: Promise, num_splits: int) -> dict[str, Any]:
    """Calibrate on random halves; count how often the floor broke, on the other half and on all."""
    num_rows = len(served.strong_N)
    draw, everything = np.random.default_rng(0), np.arange(num_rows)
    kept, kept_all, share, excess, strongest = [], [], [], [], 0
    for _ in range(num_splits):
        order = draw.permutation(num_rows)
        inside, outside = order[: num_rows // 2], order[num_rows // 2 :]
        floor = served.calibrate(inside, promise)
        served_N, strong_share = served.at(floor, outside)
        kept.append(served_N.mean() / served.strong_N[outside].mean())
        kept_all.append(served.at(floor, everything)[0].mean() / served.strong_N.mean())
        share.append(strong_share)
        excess.append(strong_share - served.hindsight(outside, promise.floor))
        strongest += floor.is_always_strongest
    return {
        "num_rows": num_rows,
        "violated_held_out": float(np.mean(np.array(kept) < promise.floor)),
        "violated_all_rows": float(np.mean(np.array(kept_all) < promise.floor)),
        "quality_kept": float(np.mean(kept)),
        "strong_share": float(np.mean(share)),
        "hindsight_share_all_rows": served.hindsight(everything, promise.floor),
        "strong_share_above_hindsight": {
            "mean": float(np.mean(excess)),
            **{f"q{q}": float(np.percentile(excess, q)) for q in (5, 50, 95)},
        },
        "always_strongest": strongest / num_splits,
    }


def watch(known: Outcomes, others: Outcomes, num_orders: int) -> dict[str, Any]:
    """Put a policy of MMLU to GSM8K in many orders, and the watches to traffic that is as before.

    A fifth of MMLU, which the fit lacked, is the reference and the traffic as before. The naive
    policy asks the strongest for nothing unfamiliar: it shows what the audits alone would notice.
    """
    folds_N = by_row(known)
    policy = build_pair(known.rows(np.flatnonzero(folds_N > 1)), WEAK, STRONG, {})
    reference, same = (known.rows(np.flatnonzero(folds_N == f)) for f in (0, 1))
    policy = calibrate(policy, reference, Promise())
    assert policy.threshold is not None
    draw = np.random.default_rng(0)
    result: dict[str, Any] = {"threshold": policy.threshold}
    for name, traffic in (("gsm8k", others), ("mmlu", same)):
        signs = policy.signs(traffic.prompts)
        # As they are, also those of unfamiliar prompts.
        chosen = np.array([each["gain"] for each in signs]) >= policy.threshold
        weak_N, strong_N = traffic.scores_NM.T
        served_N = np.where(chosen, strong_N, weak_N)
        # Traffic that keeps the floor exactly, for false alarms: quality drawn at the floor.
        floor_delays, shift_delays, null_delays = [], [], []
        for _ in range(num_orders):
            order = draw.permutation(len(strong_N))[:1000]
            floor_delays.append(floor_delay(served_N[order], strong_N[order]))
            shift_delays.append(shift_delay(policy, [signs[i] for i in order[:300]]))
            strong = draw.random(1000) < 0.8
            null = strong & (draw.random(1000) < 0.95)
            null_delays.append(floor_delay(null.astype(float), strong.astype(float)))
        result[name] = {
            "quality_kept_naive": float(served_N.mean() / strong_N.mean()),
            "floor_alarm_after": delays(floor_delays),
            "shift_alarm_after": delays(shift_delays),
            "false_alarms_at_the_floor": float(np.isfinite(null_delays).mean()),
            "gateway": serve(policy, traffic, 300 if traffic is others else 2000),
        }
        print(f"watches on {name}: {result[name]}")
    return result


def serve(policy: Policy, traffic: Outcomes, num_requests: int) -> dict[str, Any]:
    """Have a gateway of two workers serve traffic; see when the strongest gets all of it."""
    draw = np.random.default_rng(1)
    found = []
    for _ in range(NUM_SERVED):
        rows = draw.choice(len(traffic.prompts), num_requests)
        found.append(fallback_after(policy, [traffic.prompts[row] for row in rows]))
    return {
        "num_requests": num_requests,
        "fallback_after": delays([after for after, _ in found]),
        "weak_share_before": float(np.mean([weak for _, weak in found])),
    }


def floor_delay(served_N: Floats, strong_N: Floats) -> float:
    """Return after how many audits the floor is seen broken; infinite if never."""
    monitor = FloorMonitor(Promise().floor)
    for place, scores in enumerate(zip(served_N.tolist(), strong_N.tolist(), strict=True), 1):
        monitor.observe(*scores)
        if not monitor.is_held:
            return place
    return math.inf


def shift_delay(policy: Policy, signs: list[dict[str, float]]) -> float:
    """Return after how many requests a shift is seen; infinite if never."""
    monitor = ShiftMonitor(policy.evidence["reference"])
    for place, sign in enumerate(signs, 1):
        monitor.observe(sign)
        if not monitor.is_held:
            return place
    return math.inf


def delays(found: list[float]) -> dict[str, Any]:
    """Sum up delays: the share that alarmed within 300, and quantiles; null is never."""
    at = np.quantile(found, (0.5, 0.95), method="higher")
    values = [float(a) if math.isfinite(a) else None for a in at]
    return {
        "within_300": float(np.mean(np.array(found) <= 300)),
        "ever": float(np.isfinite(found).mean()),
        "q50": values[0],
        "q95": values[1],
    }


def show(name: str, promised: str, row: dict[str, Any]) -> None:
    """Print a row of the table."""
    above = row["strong_share_above_hindsight"]
    print(
        f"{name:12} {promised:8} violated {row['violated_held_out']:6.1%} (all rows "
        f"{row['violated_all_rows']:6.1%})  kept {row['quality_kept']:.3f}  strong "
        f"{row['strong_share']:6.1%}  above hindsight {above['mean'] * 100:5.1f} points",
        flush=True,
    )


if __name__ == "__main__":
    main()
