"""A policy and outcomes it did not learn from -> the policy with a threshold and its promise.

A pair with a verifier is tested on the weak model's answers, where they were recorded; else on its
estimated gains and, with the weak model's log-probabilities, as a cascade too; a pool on the path
from always-strongest to ever cheaper choices. Next: guarantee.py, cascade.py, verify.py.
"""

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moestro.errors import DataError
from moestro.policy.build import request_costs
from moestro.policy.cascade import CascadeRule, doubt
from moestro.policy.guarantee import GRID, Floor, Promise, calibrate_pair, calibrate_path
from moestro.policy.outcomes import Outcomes
from moestro.policy.policy import Policy
from moestro.policy.shift import describe_signs

Floats = NDArray[np.float64]

MIN_ROWS = 20


def calibrate(policy: Policy, outcomes: Outcomes, promise: Promise) -> Policy:
    """Return the policy with the cheapest threshold that was shown to keep the floor."""
    if len(outcomes.prompts) < MIN_ROWS:
        raise DataError(
            f"{len(outcomes.prompts)} rows are too few to promise anything: give at least"
            f" {MIN_ROWS}, better hundreds"
        )
    outcomes = outcomes.of(policy.models)
    if policy.kind == "pair":
        return _calibrate_pair(policy, outcomes, promise)
    return _with_floor(policy, _calibrate_pool(policy, outcomes, promise), outcomes)


def _calibrate_pair(policy: Policy, outcomes: Outcomes, promise: Promise) -> Policy:
    weak_N, strong_N = outcomes.scores_NM[:, 0], outcomes.scores_NM[:, 1]
    answers = outcomes.answers_of(policy.models[0]) if policy.verifier is not None else None
    if answers is not None:
        answer_gains_N = policy.answer_gains(outcomes.prompts, answers)
        floor = calibrate_pair(answer_gains_N, weak_N, strong_N, promise)
        return _with_floor(policy, floor, outcomes, checks_answers=True)
    gains_N = policy.gains(outcomes.prompts)[:, 0]
    logprobs_N = outcomes.logprobs_NM[:, 0]
    if np.isnan(logprobs_N).any():
        floor = calibrate_pair(gains_N, weak_N, strong_N, promise)
        return _with_floor(policy, floor, outcomes)
    # Two tests, of which the better result is taken: each may err half as often.
    half = replace(promise, confidence=(1 + promise.confidence) / 2)
    doubts_N = np.array([doubt(logprob) for logprob in logprobs_N])
    by_gain, by_doubt = (
        replace(calibrate_pair(signal_N, weak_N, strong_N, half), confidence=promise.confidence)
        for signal_N in (gains_N, doubts_N)
    )
    costs_NM = request_costs(policy, outcomes)
    if _cost(by_doubt, doubts_N, costs_NM, True) >= _cost(by_gain, gains_N, costs_NM, False):
        return _with_floor(policy, by_gain, outcomes)
    rule = CascadeRule(threshold=by_doubt.threshold)
    return _with_floor(policy, by_doubt, outcomes, rule)


def _cost(floor: Floor, signal_N: Floats, costs_NM: Floats, is_cascade: bool) -> float:
    """Return what requests cost with a threshold; a cascade asks the weak model every time.

    Without prices the strong model's calls are counted.
    """
    is_strong_N = signal_N >= floor.threshold
    if not costs_NM.any():
        return float(is_strong_N.mean())
    weak_N = costs_NM[:, 0] if is_cascade else np.where(is_strong_N, 0.0, costs_NM[:, 0])
    return float((weak_N + np.where(is_strong_N, costs_NM[:, 1], 0.0)).mean())


def _calibrate_pool(policy: Policy, outcomes: Outcomes, promise: Promise) -> Floor:
    gains_NM = policy.gains(outcomes.prompts)
    # As `Policy.decide` does: the cheapest model within the threshold, of equals the better one. It
    # goes by prices, as no request's cost is known before it is answered.
    costs_NM = np.array([policy.costs_usd(len(prompt)) for prompt in outcomes.prompts])
    rank_NM = np.lexsort((gains_NM, costs_NM), axis=1)
    chosen_NG = np.full((len(gains_NM), len(GRID)), gains_NM.shape[1] - 1)
    for place in range(gains_NM.shape[1] - 1, -1, -1):
        models_N1 = rank_NM[:, place : place + 1]
        is_near_NG = np.take_along_axis(gains_NM, models_N1, 1) < GRID
        is_near_NG &= models_N1 < gains_NM.shape[1] - 1
        chosen_NG = np.where(is_near_NG, models_N1, chosen_NG)
    chosen_NG[:, 0] = gains_NM.shape[1] - 1
    served_NG = np.take_along_axis(outcomes.scores_NM, chosen_NG, 1)
    is_strong_NG = chosen_NG == gains_NM.shape[1] - 1
    return calibrate_path(served_NG, is_strong_NG, GRID, promise)


def _with_floor(
    policy: Policy,
    floor: Floor,
    outcomes: Outcomes,
    rule: CascadeRule | None = None,
    checks_answers: bool = False,
) -> Policy:
    signal = "answer" if checks_answers else "gain" if rule is None else "doubt"
    num_seen = policy.seen.count(outcomes.prompts)
    caveat = f" ({num_seen:,} of these rows it had learned from)" if num_seen else ""
    evidence = floor.to_dict() | {
        "promise": floor.say() + caveat,
        "calibrated_at": round(time.time()),
        "signal": signal,
        "num_rows": len(outcomes.prompts),
        "num_rows_seen": num_seen,
        "reference": describe_signs(policy.signs(outcomes.prompts)),
    }
    # Always the strongest: no gain is so small, and no cascade would be asked for anything.
    if floor.is_always_strongest:
        return policy.with_threshold(-1.0, evidence)
    return policy.with_threshold(floor.threshold, evidence, rule, checks_answers)
