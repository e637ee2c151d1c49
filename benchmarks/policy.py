"""Claim: a policy learned from outcomes beats prompt length, on rows and subjects it never saw.

Five folds of the recordings; every row is estimated by a fit that lacked it, and that chose its
penalty inside its own rows. The other settings of LearnConfig are defaults, chosen by looking at
the same MMLU folds, so the MMLU figure is a little kind. Foreseen before measuring: MMLU 0.70,
subjects left out 0.60, GSM8K 0.60, nine models +3 points, join 0.8 of the gain, p99 0.5 ms.

    python benchmarks/policy.py PATH_TO_RECORDINGS
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from experiment import said, write_result
from numpy.typing import NDArray

from moestro.policy.build import build_pair, build_pool, join, request_costs
from moestro.policy.measures import Curve, Ranking, measure_means, measure_pair, paired_p
from moestro.policy.outcome_files import read_outcomes
from moestro.policy.outcomes import Outcomes
from moestro.policy.policy import Policy
from moestro.policy.prices import Price, read_prices
from moestro.policy.trade import pool_curve

Floats = NDArray[np.float64]
NUM_FOLDS = 5
WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
NUM_JOIN = 100


def main() -> None:
    """Measure what the recordings at hand allow, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path)
    folder = parser.parse_args().recordings
    mmlu, gsm8k = sorted(folder.glob("routellm/mmlu/*.csv")), folder / "routellm/gsm8k.csv"
    nine = folder / "nine_models"
    result: dict[str, Any] = {}
    if gsm8k.exists():
        outcomes = read_outcomes([gsm8k])
        result["gsm8k"] = pair(outcomes, by_row(outcomes), "gsm8k, prompt only")
    if nine.exists():
        prices = read_prices(nine / "models.json")
        result["nine_models"] = pool(read_outcomes([nine / "outcomes.jsonl"]), prices)
    if mmlu:
        write_result("policy", result)
        outcomes = read_outcomes(mmlu)
        result["mmlu"] = pair(outcomes, by_row(outcomes), "mmlu, rows")
        write_result("policy", result)
        if gsm8k.exists():
            result["guard"] = guard(outcomes, read_outcomes([gsm8k]))
            write_result("policy", result)
        result["mmlu_subjects"] = pair(outcomes, by_group(outcomes), "mmlu, subjects left out")
    if not result:
        sys.exit(f"{folder}: holds none of the recordings: nothing to measure")
    print(write_result("policy", result))


def by_row(outcomes: Outcomes) -> NDArray[np.int64]:
    """Put rows into folds at random; rows of one prompt share theirs."""
    _, prompt_N = np.unique(outcomes.prompts, return_inverse=True)
    return (np.random.default_rng(0).permutation(prompt_N.max() + 1) % NUM_FOLDS)[prompt_N]


def by_group(outcomes: Outcomes) -> NDArray[np.int64]:
    """Put whole files, that is subjects, into folds at random."""
    num_groups = int(outcomes.groups_N.max()) + 1
    return (np.random.default_rng(1).permutation(num_groups) % NUM_FOLDS)[outcomes.groups_N]


def pair(outcomes: Outcomes, folds_N: NDArray[np.int64], name: str) -> dict[str, Any]:
    """Measure the order that estimated gains give to rows that the fits never saw."""
    outcomes = outcomes.of([WEAK, STRONG])
    gains_N, answer_gains_N, ranks_N = (np.zeros(len(folds_N)) for _ in range(3))
    strengths, guarded, num_verifiers = [], 0, 0
    with said(name):
        for fold in range(NUM_FOLDS):
            outside = np.flatnonzero(folds_N == fold)
            inside = outcomes.rows(np.flatnonzero(folds_N != fold))
            policy = build_pair(inside, WEAK, STRONG, {})
            strengths.append(policy.training["strength"])
            unseen = outcomes.rows(outside)
            gains_N[outside] = answer_gains_N[outside] = policy.gains(unseen.prompts)[:, 0]
            answers = unseen.answers_of(WEAK)
            if policy.verifier is not None and answers is not None:
                num_verifiers += 1
                answer_gains_N[outside] = policy.answer_gains(unseen.prompts, answers)
            ranks_N[outside] = answer_gains_N[outside].argsort().argsort() / len(outside)
            guarded += int((gains_N[outside] > 1.0).sum())
    weak_N, strong_N = outcomes.scores_NM.T
    length_N = np.array([float(len(prompt)) for prompt in outcomes.prompts])
    signals = {"policy": answer_gains_N, "prompt": gains_N, "length": length_N}
    signals["oracle"] = strong_N - weak_N
    # Five fits have five constants, which run against the means of what each of them lacked: one
    # fit on new traffic has but one. Each row's rank within its fold is free of that, and of all
    # that a fit knows of how folds differ.
    signals["policy_by_fold"] = ranks_N.copy()
    for fold in range(NUM_FOLDS):
        outside = np.flatnonzero(folds_N == fold)
        ranks_N[outside] = length_N[outside].argsort().argsort() / len(outside)
    signals["length_by_fold"] = ranks_N
    curve = Ranking(answer_gains_N, weak_N, strong_N).curve()
    return {
        "num_rows": len(gains_N),
        "strengths": strengths,
        "folds_with_verifier": num_verifiers,
        # What is left of it where the weak model's answers, which a cascade always buys, cost this
        # share of the strong one's.
        "apgr_at_weak_price": {str(p): priced_apgr(curve, p) for p in (0.01, 0.05, 0.2)},
        "unfamiliar_share": guarded / len(gains_N),
        **{
            name: {n: f.to_dict() for n, f in measure_pair(signal, weak_N, strong_N).items()}
            for name, signal in signals.items()
        },
    }


def priced_apgr(curve: Curve, price: float) -> float:
    """Return the gap recovered, averaged over budgets from the weak model's price to the strong's.

    A budget buys a cascade 1 - `price` of the strong calls that it buys who asks one model only.
    """
    gap = curve.scores[-1] - curve.scores[0]
    budgets = np.linspace(0.0, 1.0, 1001)
    scores = np.interp(budgets * (1.0 - price), curve.shares, curve.scores)
    return float(np.trapezoid((scores - curve.scores[0]) / gap, budgets))


def guard(mmlu: Outcomes, gsm8k: Outcomes) -> dict[str, Any]:
    """Fit on MMLU: how many requests of GSM8K are told apart, how long fit and decision take."""
    start = time.perf_counter()
    policy = build_pair(mmlu, WEAK, STRONG, {}).with_threshold(0.1, {})
    fit_s = time.perf_counter() - start
    decided = [policy.decide(prompt, policy.models) for prompt in gsm8k.prompts]
    return {
        "fit_s": fit_s,
        "num_fit_rows": len(mmlu.prompts),
        "gsm8k_to_strongest": float(np.mean([d.model == STRONG for d in decided])),
        "mmlu_unfamiliar": float(np.mean(policy.gains(mmlu.prompts)[:, 0] > 1.0)),
        "decision_ms": time_decisions(policy, mmlu.prompts[::3]),
    }


def time_decisions(policy: Policy, prompts: Sequence[str]) -> dict[str, float]:
    """Return quantiles of the time that one decision takes, in milliseconds."""
    times = []
    for prompt in prompts:
        start = time.perf_counter()
        policy.decide(prompt, policy.models)
        times.append((time.perf_counter() - start) * 1e3)
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 99)}


def pool(outcomes: Outcomes, prices: dict[str, Price]) -> dict[str, Any]:
    """Measure choices among all models on rows unseen, and how well a newcomer joins."""
    _, places = np.unique(outcomes.prompts, return_index=True)
    outcomes = outcomes.rows(np.sort(places))
    folds_N = by_row(outcomes)
    estimates_NM = np.zeros_like(outcomes.scores_NM)
    joined_KNM = np.zeros((len(outcomes.models), *estimates_NM.shape))
    with said("nine models"):
        for fold in range(NUM_FOLDS):
            inside = outcomes.rows(np.flatnonzero(folds_N != fold))
            outside = np.flatnonzero(folds_N == fold)
            prompts = outcomes.rows(outside).prompts
            whole = build_pool(inside, prices)
            estimates_NM[outside] = estimates(whole, outcomes.models, prompts)
            few = np.random.default_rng(fold).permutation(len(inside.prompts))[:NUM_JOIN]
            for place, newcomer in enumerate(outcomes.models):
                others = without(whole, newcomer)
                grown = join(others, inside.rows(few), newcomer, prices.get(newcomer))
                joined_KNM[place, outside] = estimates(grown, outcomes.models, prompts)
    costs_NM = request_costs(whole, outcomes)[:, [whole.models.index(m) for m in outcomes.models]]
    return judge(outcomes, estimates_NM, costs_NM) | {
        "join": judge_joins(outcomes, estimates_NM, joined_KNM)
    }


def without(policy: Policy, model: str) -> Policy:
    """Return a pool as if it had been learned without a model.

    Linear heads are learned one by one, but for the penalty, which all share; the forest's splits
    are joint. So this model's scores had a part in both.
    """
    places = [place for place, name in enumerate(policy.models) if name != model]
    return replace(
        policy,
        models=tuple(policy.models[place] for place in places),
        estimator=policy.estimator.of(places),
    )


def estimates(policy: Policy, models: Sequence[str], prompts: Sequence[str]) -> Floats:
    """Return estimated scores by prompt and model, in the order of `models`."""
    rows = [policy.decide(prompt, models).scores for prompt in prompts]
    return np.array([[row[name] for name in models] for row in rows])


def judge_joins(outcomes: Outcomes, estimates_NM: Floats, joined_KNM: Floats) -> dict[str, Any]:
    """Say how much of each newcomer's gain over the others' best choice its joining recovers.

    A newcomer that the others do without has hardly a gain to recover: see the sum over all.
    """
    scores_NM, rows_N = outcomes.scores_NM, np.arange(len(outcomes.prompts))
    served = scores_NM[rows_N, estimates_NM.argmax(1)].mean()
    found: dict[str, Any] = {}
    for place, newcomer in enumerate(outcomes.models):
        others_NM = estimates_NM.copy()
        others_NM[:, place] = -1.0
        base = scores_NM[rows_N, others_NM.argmax(1)].mean()
        joined = scores_NM[rows_N, joined_KNM[place].argmax(1)].mean()
        gains = {"retrained": float(served - base), "joined": float(joined - base)}
        # Nobody recovers what there is none of.
        recovered = gains["joined"] / gains["retrained"] if gains["retrained"] > 0 else None
        found[newcomer] = gains | {"recovered": recovered}
    retrained, joined = (sum(f[key] for f in found.values()) for key in ("retrained", "joined"))
    return {"newcomers": found, "recovered_over_all": joined / retrained}


def judge(outcomes: Outcomes, estimates_NM: Floats, costs_NM: Floats) -> dict[str, Any]:
    """Compare with the best single model."""
    scores_NM, rows_N = outcomes.scores_NM, np.arange(len(outcomes.prompts))
    best = int(scores_NM.mean(0).argmax())
    served_N = scores_NM[rows_N, estimates_NM.argmax(1)]
    best_N, price = scores_NM[:, best], costs_NM[:, best].mean()
    columns = {
        "policy": served_N,
        "best_single": best_N,
        "oracle": scores_NM.max(1),
        "gain": served_N - best_N,
    }
    means = measure_means(np.column_stack(list(columns.values())))
    curve = [point.to_dict() for point in pool_curve(estimates_NM, scores_NM, costs_NM)]
    good = [p["cost_usd"] / price for p in curve if p["score"] >= best_N.mean()]
    return {
        "num_rows": len(rows_N),
        **{name: mean.to_dict() for name, mean in zip(columns, means, strict=True)},
        "p_value": paired_p(served_N, best_N),
        "cost_share_at_best_single": min(good, default=None),
        "curve": curve,
    }


if __name__ == "__main__":
    main()
