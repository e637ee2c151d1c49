"""A policy's life: learned, stored, asked, measured, joined by a new model."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moestro.errors import CheckpointError, ConfigError, DataError
from moestro.policy.build import build_pair, build_pool, join
from moestro.policy.features import read
from moestro.policy.learn import LearnConfig
from moestro.policy.policy import UNFAMILIAR, Policy
from moestro.policy.prices import Price, build_prices, read_prices
from moestro.policy.report import report
from moestro.policy.store import load_policy, save_policy
from tests.unit.policy.made_outcomes import make_outcomes

QUICK = LearnConfig(strengths=(4.0, 32.0), num_folds=2, num_topics=4)
PRICES = build_prices({"small": 0.1, "large": {"input_price": 2, "output_price": 6}})
EASY, HARD = "Greet my friend 7 12", "Prove that 9 divides n^3 40"


@pytest.fixture(scope="module")
def pair() -> Policy:
    return build_pair(make_outcomes(), "small", "large", PRICES, QUICK)


@pytest.fixture(scope="module")
def pool() -> Policy:
    prices = {f"m{m}": Price(usd_per_request=float(m)) for m in range(4)}
    return build_pool(make_outcomes(160, 4), prices, QUICK)


def test_before_calibration_a_pair_asks_the_strongest(pair: Policy) -> None:
    decision = pair.decide(EASY, ["small", "large"])
    assert decision.model == "large"
    assert "not calibrated" in decision.reason
    assert decision.fallbacks == ("small",)


def test_a_calibrated_pair_sends_the_hard_ones_to_the_strong_model(pair: Policy) -> None:
    calibrated = pair.with_threshold(0.5, {})
    easy, hard = (calibrated.decide(p, pair.models) for p in (EASY, HARD))
    assert (easy.model, hard.model) == ("small", "large")
    assert "reaches the threshold 0.500" in hard.reason
    assert easy.digest != hard.digest
    assert easy.digest == calibrated.decide(EASY, pair.models).digest


def test_only_models_allowed_are_chosen(pair: Policy) -> None:
    assert pair.decide(HARD, ["small", "else"]).model == "small"
    with pytest.raises(ConfigError, match="none of else is known"):
        pair.decide(HARD, ["else"])


def test_a_prompt_unlike_the_data_goes_to_the_strongest(pair: Policy) -> None:
    strange = "def f():\n    return {};\n" * 200
    decision = pair.with_threshold(1.5, {}).decide(strange, pair.models)
    assert decision.model == "large"
    assert "unlike the training data" in decision.reason
    assert pair.gains([strange])[0].tolist() == [UNFAMILIAR, 0.0]


@pytest.mark.parametrize("prompt", ["", "\x00", "\ud800 lone", "9" * 5000, "1,2,3.4.5", "\u0662"])
def test_any_text_is_decided(pair: Policy, prompt: str) -> None:
    assert pair.decide(prompt, pair.models).model in pair.models


def test_a_pool_asks_who_is_expected_to_do_best_or_the_cheapest_good_one(pool: Policy) -> None:
    assert pool.strongest == "m3"
    assert "highest estimated score" in pool.decide(EASY, pool.models).reason
    calibrated = pool.with_threshold(0.3, {})
    assert calibrated.decide(EASY, pool.models).model == "m0"
    assert calibrated.decide(HARD, ["m0", "m3"]).model == "m3"


def test_saved_is_loaded(pool: Policy, tmp_path: Path) -> None:
    saved = pool.with_threshold(0.25, {"floor": 0.95})
    save_policy(saved, tmp_path / "p")
    loaded = load_policy(tmp_path / "p")
    assert (loaded.models, loaded.threshold) == (saved.models, 0.25)
    assert dict(loaded.evidence) == {"floor": 0.95}
    for prompt in (EASY, HARD):
        assert loaded.decide(prompt, pool.models) == saved.decide(prompt, pool.models)


def test_a_fit_is_the_same_twice(pair: Policy) -> None:
    again = build_pair(make_outcomes(), "small", "large", PRICES, QUICK)
    assert np.array_equal(again.estimator.text_DM, pair.estimator.text_DM)


def test_damaged_folders_are_named(pair: Policy, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no policy\.json"):
        load_policy(tmp_path)
    save_policy(pair, tmp_path)
    text = (tmp_path / "policy.json").read_text()
    (tmp_path / "policy.json").write_text(text.replace('"format": 4', '"format": 9'))
    with pytest.raises(CheckpointError, match="format 9 is not 4"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text(text.replace('"small",', ""))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text(text.replace('"kind": "pair"', '"kind": "pear"'))
    with pytest.raises(CheckpointError, match="kind is 'pear', expected pair or pool"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text(text)
    (tmp_path / "weights.npz").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_policy(tmp_path)


def test_weights_of_another_writing_are_refused(
    pair: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = pair.with_threshold(0.5, {"floor": 0.9})
    save_policy(promised, tmp_path)
    assert load_policy(tmp_path).threshold == 0.5

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moestro.policy.store.write_json", stop)
    other = build_pair(make_outcomes(200, seed=9), "small", "large", {})
    with pytest.raises(KeyboardInterrupt):
        save_policy(other, tmp_path)
    with pytest.raises(CheckpointError, match=r"is not the one that policy\.json tells of"):
        load_policy(tmp_path)


def test_whatever_befalls_the_bytes_of_weights_ends_in_one_line(
    pair: Policy, tmp_path: Path
) -> None:
    save_policy(pair, tmp_path)
    whole = (tmp_path / "weights.npz").read_bytes()
    said = json.loads((tmp_path / "policy.json").read_text())
    del said["weights_sha256"]
    # As of a policy from before there were digests.
    (tmp_path / "policy.json").write_text(json.dumps(said))
    draw, num_refused = random.Random(0), 0
    for _ in range(100):
        at = draw.randrange(len(whole))
        damaged = whole[:at] + draw.randbytes(16) + whole[at + 16 :]
        (tmp_path / "weights.npz").write_bytes(damaged)
        try:
            load_policy(tmp_path)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 90


def test_what_cannot_be_learned_is_said() -> None:
    made = make_outcomes()
    with pytest.raises(ConfigError, match="both small"):
        build_pair(made, "small", "small", {}, QUICK)
    with pytest.raises(DataError, match="swap --weak and --strong"):
        build_pair(made, "large", "small", {}, QUICK)
    with pytest.raises(DataError, match="one model only"):
        build_pool(made.of(["small"]), {}, QUICK)
    with pytest.raises(DataError, match="too few"):
        build_pool(make_outcomes(6), {}, QUICK)
    same = replace(made, scores_NM=np.ones_like(made.scores_NM))
    with pytest.raises(DataError, match="nothing to learn"):
        build_pool(same, {}, QUICK)
    with pytest.raises(DataError, match="no gain to learn"):
        build_pair(same, "small", "large", {}, QUICK)


def test_a_pair_report_beats_its_baselines_on_unseen_rows(pair: Policy) -> None:
    result = report(pair.with_threshold(0.3, {}), make_outcomes(200, seed=5))
    assert result["apgr"]["value"] > result["baselines"]["random"]["apgr"]["value"] + 0.1
    assert result["apgr"]["value"] <= result["baselines"]["oracle"]["apgr"]["value"]
    assert set(result["baselines"]) == {"random", "length", "oracle"}
    assert 0.2 < result["at_threshold"]["strong_share"]["value"] < 0.9
    assert report(pair, make_outcomes(50, seed=5))["at_threshold"] is None


def test_a_pool_report_lies_between_the_best_single_and_the_oracle(pool: Policy) -> None:
    result = report(pool, make_outcomes(200, 4, seed=5))
    assert result["accuracy"]["value"] <= result["oracle"]["value"]
    assert result["best_single"]["model"] == "m3"
    assert sum(result["shares"].values()) == pytest.approx(1.0)
    assert result["cost"]["value"] <= 3.0 + 1e-9
    with pytest.raises(DataError, match="no outcomes"):
        report(pool, make_outcomes(0, 4))


def test_a_new_model_joins_and_the_others_stay(pool: Policy) -> None:
    made = make_outcomes(60, 4, seed=3)
    scored = replace(made, models=("a", "b", "c", "fresh"))
    grown = join(pool, scored, "fresh", Price(usd_per_request=0.5))
    assert set(grown.models) == {*pool.models, "fresh"}
    before, after = (p.decide(HARD, pool.models).scores for p in (pool, grown))
    assert before == pytest.approx(after, abs=1e-4)
    fresh = [grown.decide(p, ["fresh"]).scores["fresh"] for p in made.prompts]
    # A margin of 1.5 standard errors of 60 scores, which are 0.22 of standard deviation.
    assert 0.02 < made.scores_NM[:, 3].mean() - np.mean(fresh) < 0.1


def test_who_may_not_join_is_told_why(pair: Policy, pool: Policy) -> None:
    made = make_outcomes(60)
    with pytest.raises(ConfigError, match="takes no third model"):
        join(pair, made, "small", None)
    with pytest.raises(ConfigError, match="in the policy already"):
        join(pool, made, "m1", None)
    with pytest.raises(DataError, match="at least 10"):
        join(pool, make_outcomes(5), "small", None)


def test_prices_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"a": {"input_price": 1, "output_price": 2}, "b": 0.5}')
    prices = read_prices(path)
    assert prices["a"].cost_usd(4000) == pytest.approx((1000 + 2 * 256) / 1e6)
    for value, said in ((-1, "from 0 on"), ("free", "not a price"), ({}, "not a price")):
        with pytest.raises(ConfigError, match=said):
            build_prices({"a": value})
    with pytest.raises(ConfigError, match="no such file"):
        read_prices(tmp_path / "none.json")


@pytest.mark.parametrize(
    "values",
    [
        {"strengths": ()},
        {"num_folds": 1},
        {"num_topics": 0},
        {"forest_share": 1.5},
        {"strengths": (-1.0,)},
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LearnConfig(**values)  # type: ignore[arg-type]


def test_recorded_costs_become_prices_where_none_are_given() -> None:
    made = make_outcomes()
    costs = np.column_stack([np.full(120, 0.25), np.full(120, np.nan)])
    policy = build_pair(replace(made, costs_NM=costs), "small", "large", {}, QUICK)
    assert policy.prices["small"].usd_per_request == 0.25
    assert "large" not in policy.prices


def test_features_do_not_depend_on_what_lies_in_the_middle_of_a_long_prompt() -> None:
    long = "a" * 2500 + "b" * 100 + "c" * 2500
    other = long.replace("b", "d")
    assert read(long).digest == read(other).digest
