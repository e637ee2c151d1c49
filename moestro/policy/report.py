"""What a policy is worth on recorded outcomes, beside what it is to be compared with.

Turns a policy and outcomes into one document. Knows no files. Next: store.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import DataError
from moestro.policy.build import request_costs
from moestro.policy.features import read
from moestro.policy.measures import measure_means, measure_pair, paired_p
from moestro.policy.outcomes import Outcomes
from moestro.policy.policy import Policy
from moestro.policy.trade import pool_curve

Floats = NDArray[np.float64]


def report(policy: Policy, outcomes: Outcomes, seed: int = 0) -> dict[str, Any]:
    """Measure a policy on outcomes that it should not have learned from."""
    if not outcomes.prompts:
        raise DataError("no outcomes to report on: give a file with rows")
    outcomes = outcomes.of(policy.models)
    measure = _report_pair if policy.kind == "pair" else _report_pool
    num_rows, num_seen = len(outcomes.prompts), policy.seen.count(outcomes.prompts)
    head = {"kind": policy.kind, "num_rows": num_rows, "num_rows_seen": num_seen}
    return head | measure(policy, outcomes, seed)


def _report_pair(policy: Policy, outcomes: Outcomes, seed: int) -> dict[str, Any]:
    weak_N, strong_N = outcomes.scores_NM[:, 0], outcomes.scores_NM[:, 1]
    by_prompt_N = gains_N = policy.gains(outcomes.prompts)[:, 0]
    answers = outcomes.answers_of(policy.models[0]) if _checks_answers(policy) else None
    if answers is not None:
        gains_N = policy.answer_gains(outcomes.prompts, answers)
    signals = {
        "random": np.zeros(len(weak_N)),
        "length": np.array([float(len(prompt)) for prompt in outcomes.prompts]),
        "oracle": strong_N - weak_N,
    }
    if answers is not None:
        signals["prompt"] = by_prompt_N
    weak, strong = measure_means(outcomes.scores_NM, seed)
    figures = _pair_figures(gains_N, weak_N, strong_N, seed)
    baselines = {n: _pair_figures(s, weak_N, strong_N, seed) for n, s in signals.items()}
    point = None
    if policy.threshold is not None and policy.checks_answers == (answers is not None):
        is_strong_N = gains_N >= policy.threshold
        served_N = np.where(is_strong_N, strong_N, weak_N)
        share, score = measure_means(np.column_stack([is_strong_N, served_N]).astype(float), seed)
        point = {"strong_share": share.to_dict(), "score": score.to_dict()}
    return {
        "weak": {"model": policy.models[0], "score": weak.to_dict()},
        "strong": {"model": policy.models[1], "score": strong.to_dict()},
        # A cascade pays for the weak model's answer each time; the figures count strong calls.
        "signal": "prompt" if answers is None else "answer",
        "asks_weak_first": answers is not None,
        **figures,
        "baselines": baselines,
        "threshold": policy.threshold,
        "at_threshold": point,
        "unfamiliar_share": _unfamiliar_share(policy, outcomes),
    }


def _checks_answers(policy: Policy) -> bool:
    """Tell whether answers decide: as calibrated, else wherever there is a verifier."""
    return policy.verifier is not None and (policy.threshold is None or policy.checks_answers)


def _pair_figures(signal_N: Floats, weak_N: Floats, strong_N: Floats, seed: int) -> dict[str, Any]:
    figures = measure_pair(signal_N, weak_N, strong_N, seed)
    return {name: value.to_dict() for name, value in figures.items()}


def _report_pool(policy: Policy, outcomes: Outcomes, seed: int) -> dict[str, Any]:
    scores_NM, costs_NM = outcomes.scores_NM, request_costs(policy, outcomes)
    estimates_NM = np.array([policy.estimator.estimate(read(p)) for p in outcomes.prompts])
    places = {name: place for place, name in enumerate(policy.models)}
    decisions = [policy.decide(prompt, policy.models) for prompt in outcomes.prompts]
    chosen_N = np.array([places[decision.model] for decision in decisions])
    rows_N = np.arange(len(chosen_N))
    best = int(scores_NM.mean(0).argmax())
    served_N, best_N = scores_NM[rows_N, chosen_N], scores_NM[:, best]
    columns = {
        "accuracy": served_N,
        "best_single": best_N,
        "oracle": scores_NM.max(1),
        "random": scores_NM.mean(1),
        "gain_over_best_single": served_N - best_N,
        "cost": costs_NM[rows_N, chosen_N],
        "best_single_cost": costs_NM[:, best],
    }
    means = measure_means(np.column_stack(list(columns.values())), seed)
    figures: dict[str, Any] = {
        name: value.to_dict() for name, value in zip(columns, means, strict=True)
    }
    figures["best_single"] = {"model": policy.models[best], **figures["best_single"]}
    curve = [p.to_dict() for p in pool_curve(estimates_NM, scores_NM, costs_NM)]
    models = zip(policy.models, scores_NM.mean(0), costs_NM.mean(0), strict=True)
    shares_M = np.bincount(chosen_N, minlength=len(policy.models)) / len(chosen_N)
    return {
        **figures,
        "p_value": paired_p(served_N, best_N, seed),
        "cost_share_at_best_single": _cost_share(curve, best_N, costs_NM[:, best]),
        "models": {n: {"score": float(s), "cost": float(c)} for n, s, c in models},
        "shares": dict(zip(policy.models, map(float, shares_M), strict=True)),
        "threshold": policy.threshold,
        "unfamiliar_share": _unfamiliar_share(policy, outcomes),
        "curve": curve,
    }


def _cost_share(curve: list[dict[str, Any]], best_N: Floats, costs_N: Floats) -> float | None:
    """Return the least cost on the curve with the best model's score, as a share of its cost.

    The point is picked on the rows that it is measured on: an optimistic figure.
    """
    good = [point["cost_usd"] for point in curve if point["score"] >= best_N.mean()]
    cost_usd = float(costs_N.mean())
    return min(good) / cost_usd if good and cost_usd > 0 else None


def _unfamiliar_share(policy: Policy, outcomes: Outcomes) -> float:
    return float(np.mean([policy.is_unfamiliar(read(prompt)) for prompt in outcomes.prompts]))
