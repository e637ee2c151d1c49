"""A floor: shown on rows that the policy did not learn from, kept in its folder; a cascade too."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moestro.errors import DataError
from moestro.policy.build import build_pair, build_pool
from moestro.policy.calibrate import calibrate
from moestro.policy.cascade import CascadeRule, doubt, mean_logprob
from moestro.policy.guarantee import Promise
from moestro.policy.outcome_files import read_outcomes
from moestro.policy.outcomes import Outcomes
from moestro.policy.policy import Policy
from moestro.policy.prices import Price
from moestro.policy.store import load_policy, save_policy
from tests.unit.policy.made_outcomes import make_outcomes


@pytest.fixture(scope="module")
def pair() -> Policy:
    return build_pair(make_outcomes(400, seed=1), "small", "large", {})


def with_logprobs(outcomes: Outcomes, seed: int = 0) -> Outcomes:
    """Have the small model know what it knows: sure where it was right."""
    draw = np.random.default_rng(seed)
    right_N = outcomes.scores_NM[:, 0] > 0.5
    means_N = np.where(right_N, -0.05, -1.5) * draw.uniform(0.5, 1.5, len(right_N))
    logprobs_NM = np.stack([means_N, np.full(len(means_N), math.nan)], axis=1)
    return replace(outcomes, logprobs_NM=logprobs_NM)


def test_a_calibrated_pair_asks_the_strong_model_less_and_keeps_the_floor(pair: Policy) -> None:
    calibrated = calibrate(pair, make_outcomes(800, seed=2), Promise(floor=0.9))
    evidence = calibrated.evidence
    assert 0.3 < evidence["strong_share"] < 0.9
    fresh = make_outcomes(800, seed=3)
    chosen = [calibrated.decide(prompt, pair.models).model for prompt in fresh.prompts]
    served = [row[int(chosen[n] == "large")] for n, row in enumerate(fresh.scores_NM)]
    assert np.mean(served) >= 0.9 * fresh.scores_NM[:, 1].mean()


def test_few_rows_mean_always_the_strongest_and_say_how_many_would_do(pair: Policy) -> None:
    calibrated = calibrate(pair, make_outcomes(20, seed=2), Promise(floor=0.99))
    assert calibrated.evidence["is_always_strongest"]
    assert (
        "more rows" in calibrated.evidence["promise"]
        or "rows like" in (calibrated.evidence["promise"])
    )
    prompts = make_outcomes(50, seed=3).prompts
    assert {calibrated.decide(prompt, pair.models).model for prompt in prompts} == {"large"}
    with pytest.raises(DataError, match="19 rows are too few"):
        calibrate(pair, make_outcomes(19, seed=2), Promise())


def test_a_model_that_knows_what_it_knows_makes_a_cascade(pair: Policy, tmp_path: Path) -> None:
    calibrated = calibrate(pair, with_logprobs(make_outcomes(800, seed=2)), Promise(floor=0.95))
    rule = calibrated.cascade
    assert rule is not None
    assert calibrated.evidence["signal"] == "doubt"
    assert calibrated.evidence["confidence"] == 0.95
    fresh = with_logprobs(make_outcomes(800, seed=3), seed=4)
    kept_N = np.array([rule.accepts("", [value]) for value in fresh.logprobs_NM[:, 0]])
    served_N = np.where(kept_N, fresh.scores_NM[:, 0], fresh.scores_NM[:, 1])
    assert served_N.mean() >= 0.95 * fresh.scores_NM[:, 1].mean()
    assert kept_N.mean() > 0.3
    save_policy(calibrated, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.cascade == rule
    decision = loaded.decide("whatever", loaded.models)
    assert (decision.model, decision.cascade, decision.fallbacks) == ("small", rule, ("large",))
    # With one of the two allowed there is nothing to fall back on.
    assert loaded.decide("whatever", ["large"]).cascade is None


def test_a_pool_is_calibrated_as_it_decides() -> None:
    pool = build_pool(make_outcomes(600, 3, seed=1), {})
    rows = make_outcomes(600, 3, seed=2)
    calibrated = calibrate(pool, rows, Promise(floor=0.9))
    chosen = [calibrated.decide(prompt, pool.models).model for prompt in rows.prompts]
    share = chosen.count(pool.strongest) / len(chosen)
    assert share == pytest.approx(calibrated.evidence["strong_share"])
    assert share < 1


def test_a_pool_is_calibrated_by_prices_and_not_by_costs_that_decisions_cannot_know() -> None:
    prices = {"m0": Price(usd_per_request=1.0), "m1": Price(usd_per_request=2.0)}
    pool = build_pool(make_outcomes(600, 3, seed=1), prices)
    rows = make_outcomes(600, 3, seed=2)
    # In these rows the model that is cheaper by its price happened to cost more.
    costly = replace(rows, costs_NM=np.tile([9.0, 2.0, 10.0], (600, 1)))
    calibrated = calibrate(pool, costly, Promise(floor=0.9))
    decided = [calibrated.decide(prompt, pool.models).model for prompt in rows.prompts]
    scores_NM = rows.of(pool.models).scores_NM
    served = [row[pool.models.index(name)] for row, name in zip(scores_NM, decided, strict=True)]
    assert np.mean(served) == pytest.approx(calibrated.evidence["quality"])


def test_a_rule_looks_at_the_first_tokens_and_keeps_nothing_that_says_nothing() -> None:
    rule = CascadeRule(threshold=0.5, num_tokens=2)
    assert rule.accepts("", [-0.1, -0.2, -90.0])
    assert not rule.accepts("", [-90.0, -0.1, -0.1])
    assert not rule.accepts("", [])
    assert doubt(0.0) == 0
    assert doubt(mean_logprob([-1.0, -1.0])) == pytest.approx(1 - math.exp(-1))


def test_log_probabilities_are_read_from_csv_and_json_lines(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("prompt,small,large,small_logprob\nx,1,1,-0.5\ny,0,1,\n")
    assert read_outcomes([table]).logprobs_NM[0, 0] == -0.5
    assert np.isnan(read_outcomes([table]).logprobs_NM[1]).all()
    lines = tmp_path / "a.jsonl"
    scores = {"small": 1, "large": 1}
    rows = [{"prompt": "x", "scores": scores, "logprobs": {"small": [-1.0, -3.0]}}]
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert read_outcomes([lines]).logprobs_NM[0, 0] == -2.0
    rows[0]["logprobs"] = {"small": 0.5}
    lines.write_text(json.dumps(rows[0]))
    with pytest.raises(DataError, match=r"line 1, small: 0\.5 is no log-probability"):
        read_outcomes([lines])
