"""Where the weak model's answers were recorded, they say whether the strong one is needed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moestro.errors import CheckpointError, DataError
from moestro.policy.answers import SIGNS, read_answer
from moestro.policy.build import build_pair
from moestro.policy.calibrate import calibrate
from moestro.policy.features import read
from moestro.policy.guarantee import Promise
from moestro.policy.outcome_files import read_outcomes
from moestro.policy.outcomes import Outcomes
from moestro.policy.policy import UNFAMILIAR, Policy
from moestro.policy.prices import Price
from moestro.policy.report import report
from moestro.policy.store import load_policy, save_policy
from tests.unit.policy.made_outcomes import make_outcomes

GOOD, BAD = "It is 3 * 4 = 12.\n#### 12", "It is 3 * 4 = 17, so the answer would be that 1"


def signs(prompt: str, answer: str) -> dict[str, float]:
    return dict(zip(SIGNS, read_answer(prompt, answer), strict=True))


def with_answers(outcomes: Outcomes, seed: int = 0, share_told: float = 0.9) -> Outcomes:
    """Have the small model's answers look right where they are, mostly, whatever the prompt."""
    draw = np.random.default_rng(seed)
    right_N = draw.random(len(outcomes.prompts)) < 0.5
    looks_N = np.where(draw.random(len(right_N)) < share_told, right_N, ~right_N)
    scores_NM = np.stack([right_N, np.ones(len(right_N))], axis=1).astype(float)
    answers_NM = np.full((len(right_N), 2), None)
    answers_NM[:, 0] = [GOOD if looks else BAD for looks in looks_N]
    return replace(outcomes, scores_NM=scores_NM, answers_NM=answers_NM)


@pytest.fixture(scope="module")
def pair() -> Policy:
    return build_pair(with_answers(make_outcomes(300, seed=1)), "small", "large", {})


@pytest.mark.parametrize(
    ("text", "num_right", "num_wrong"),
    [
        ("2*3=6", 1, 0),
        ("she pays $40 * 1.2 = $48", 1, 0),
        ("2 + 3 * 4 = 14 and 1 - 2 = 3", 1, 1),
        ("20% * 50 = 10", 1, 0),
        ("6 x 1,000 = 6,000 meters", 1, 0),
        ("<<80000+50000=130000>>130,00", 1, 0),
        ("5 * (2+1) = 15", 0, 0),
        ("1 / 0 = 0", 0, 0),
        ("x + 1 = 5", 0, 0),
        ("9" * 400 + " * 2 = 4", 0, 0),
    ],
)
def test_an_answers_own_sums_are_checked(text: str, num_right: int, num_wrong: int) -> None:
    found = signs("What?", text)
    assert np.expm1(found["right_sums"]) == pytest.approx(num_right)
    assert np.expm1(found["wrong_sums"]) == pytest.approx(num_wrong)


def test_signs_tell_a_whole_answer_from_one_cut_off() -> None:
    prompt = "Ann has 3 bags of 4. How many?"
    good, bad = signs(prompt, GOOD), signs(prompt, BAD)
    assert good["has_final"] > bad["has_final"]
    assert good["final_is_a_sum"] > bad["final_is_a_sum"]
    assert good["used_share"] == 1
    assert bad["log_hedges"] > 0


@pytest.mark.parametrize("answer", ["", " ", "\ud800", "=" * 9000, "1+" * 4000 + "1=1", "<<1=1>>"])
def test_signs_are_numbers_whatever_the_answer(answer: str) -> None:
    assert np.isfinite(read_answer("", answer)).all()


def test_a_verifier_is_learned_only_where_answers_tell_more_than_prompts() -> None:
    told = with_answers(make_outcomes(300, seed=1))
    assert build_pair(told, "small", "large", {}).training["has_verifier"]
    untold = with_answers(make_outcomes(300, seed=1), share_told=0.5)
    assert build_pair(untold, "small", "large", {}).verifier is None
    some = replace(told, answers_NM=np.where(np.arange(300)[:, None] == 7, None, told.answers_NM))
    assert build_pair(some, "small", "large", {}).verifier is None


def test_a_weak_model_that_costs_as_much_is_not_asked_first() -> None:
    told = with_answers(make_outcomes(300, seed=1))
    dear = {"small": Price(usd_per_request=0.9), "large": Price(usd_per_request=1.0)}
    assert build_pair(told, "small", "large", dear).verifier is None
    cheap = {"small": Price(usd_per_request=0.1), "large": Price(usd_per_request=1.0)}
    policy = build_pair(told, "small", "large", cheap)
    assert policy.verifier is not None
    # The curve counts both calls.
    assert max(point["cost_usd"] for point in policy.curve) == pytest.approx(1.1)


def test_a_policy_that_checks_answers_keeps_its_floor_and_survives_its_file(
    pair: Policy, tmp_path: Path
) -> None:
    calibrated = calibrate(
        pair, with_answers(make_outcomes(600, seed=2), seed=2), Promise(floor=0.9)
    )
    assert calibrated.evidence["signal"] == "answer"
    assert calibrated.asks_weak_first
    save_policy(calibrated, tmp_path)
    loaded = load_policy(tmp_path)
    fresh = with_answers(make_outcomes(600, seed=3), seed=3)
    served = []
    for row, prompt in enumerate(fresh.prompts):
        decision = loaded.decide(prompt, loaded.models)
        if loaded.is_unfamiliar(read(prompt)):
            served.append(fresh.scores_NM[row, 1])
            continue
        assert (decision.model, decision.fallbacks) == ("small", ("large",))
        assert decision.cascade is not None
        assert decision.cascade.reads_whole
        is_kept = decision.cascade.accepts(fresh.answers_NM[row, 0], ())
        assert not decision.cascade.accepts(" ", ())
        served.append(fresh.scores_NM[row, 0 if is_kept else 1])
    assert np.mean(served) >= 0.9
    assert 0.3 < calibrated.evidence["strong_share"] < 0.7
    assert loaded.decide(prompt, ["small"]).model == "small"


def test_without_recorded_answers_the_prompt_decides(pair: Policy) -> None:
    calibrated = calibrate(pair, make_outcomes(400, seed=2), Promise(floor=0.5))
    assert not calibrated.asks_weak_first
    assert calibrated.evidence["signal"] == "gain"
    shown = report(calibrated, with_answers(make_outcomes(100, seed=3), seed=3))
    assert shown["signal"] == "prompt"


def test_what_is_unlike_the_training_data_is_not_asked_of_the_weak_model(pair: Policy) -> None:
    calibrated = calibrate(pair, with_answers(make_outcomes(600, seed=2), seed=2), Promise())
    strange = "\u4e16\u754c" * 1500
    assert calibrated.decide(strange, pair.models).model == "large"
    assert calibrated.answer_gains([strange], [GOOD])[0] == UNFAMILIAR


def test_a_report_goes_by_answers_where_there_are_any(pair: Policy) -> None:
    told = with_answers(make_outcomes(300, seed=4), seed=4)
    shown = report(pair, told)
    assert (shown["signal"], shown["asks_weak_first"]) == ("answer", True)
    assert shown["apgr"]["value"] > shown["baselines"]["prompt"]["apgr"]["value"] + 0.1
    calibrated = calibrate(pair, told, Promise())
    assert report(calibrated, told)["at_threshold"]["score"]["value"] >= 0.95
    # What was shown for answers says nothing of prompts.
    untold = replace(told, answers_NM=np.full((300, 2), None))
    assert report(calibrated, untold)["at_threshold"] is None
    assert report(calibrated, untold)["signal"] == "prompt"


def test_a_damaged_verifier_is_refused(pair: Policy, tmp_path: Path) -> None:
    for change in ("other", "nan", "gone"):
        save_policy(replace(pair, threshold=0.5, checks_answers=True), tmp_path)
        saved = json.loads((tmp_path / "policy.json").read_text())
        if change == "other":
            saved["verifier"]["inputs"].pop("log_chars")
        elif change == "nan":
            saved["verifier"]["inputs"]["log_chars"][2] = 1e999
        else:
            saved["verifier"] = None
        (tmp_path / "policy.json").write_text(json.dumps(saved))
        with pytest.raises(CheckpointError, match="policy"):
            load_policy(tmp_path)


def test_answers_are_read_from_csv_and_json_lines(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("prompt,small,large,small_response,large_tokens\nx,1,1,twelve,3\ny,0,1,,3\n")
    outcomes = read_outcomes([table])
    assert outcomes.models == ("small", "large")
    assert outcomes.answers_of("small") == ("twelve", "")
    assert outcomes.answers_of("large") is None
    lines = tmp_path / "a.jsonl"
    row = {"prompt": "x", "scores": {"small": 1, "large": 1}, "answers": {"small": "so"}}
    lines.write_text(json.dumps(row))
    assert read_outcomes([lines]).answers_of("small") == ("so",)
    lines.write_text(json.dumps({**row, "answers": ["so"]}))
    with pytest.raises(DataError, match=r"answers are \['so'\]: give those of each model"):
        read_outcomes([lines])
