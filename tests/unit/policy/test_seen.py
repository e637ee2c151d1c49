"""What a policy learned from is known again, and said wherever it would make figures too good."""

import json
from pathlib import Path

import numpy as np
import pytest

from moestro.policy import seen
from moestro.policy.build import build_pair, build_pool, join
from moestro.policy.calibrate import calibrate
from moestro.policy.guarantee import Promise
from moestro.policy.policy import Policy
from moestro.policy.report import report
from moestro.policy.seen import SeenPrompts
from moestro.policy.store import WEIGHTS_FILE, load_policy, save_policy
from tests.unit.policy.made_outcomes import make_outcomes, write_csv, write_weights_of_before
from tests.unit.policy.test_commands import QUICK, run

WARNING = "the policy learned from 60 of these 60 rows, where it looks better than it is"


@pytest.fixture(scope="module")
def pair() -> Policy:
    return build_pair(make_outcomes(200, seed=1), "small", "large", {})


def test_a_report_on_rows_that_were_learned_from_says_so(pair: Policy) -> None:
    assert report(pair, make_outcomes(200, seed=1))["num_rows_seen"] == 200
    assert report(pair, make_outcomes(200, seed=2))["num_rows_seen"] == 0


def test_a_promise_made_on_rows_that_were_learned_from_says_so(pair: Policy) -> None:
    evidence = calibrate(pair, make_outcomes(200, seed=1), Promise(floor=0.8)).evidence
    assert evidence["num_rows_seen"] == 200
    assert evidence["promise"].endswith("(200 of these rows it had learned from)")


def test_a_promise_made_on_fresh_rows_has_no_caveat(pair: Policy) -> None:
    evidence = calibrate(pair, make_outcomes(200, seed=2), Promise(floor=0.8)).evidence
    assert evidence["num_rows_seen"] == 0
    assert "learned from" not in evidence["promise"]


def test_what_was_seen_is_kept_in_the_folder_and_grows_with_a_model_that_joins(
    tmp_path: Path,
) -> None:
    scored = make_outcomes(30, seed=5)
    pool = join(build_pool(make_outcomes(60, 3), {}), scored, "large", None)
    save_policy(pool, tmp_path)
    assert load_policy(tmp_path).seen.count(scored.prompts) == 30


def test_a_policy_that_does_not_know_what_it_saw_says_nothing(pair: Policy, tmp_path: Path) -> None:
    save_policy(pair, tmp_path)
    with np.load(tmp_path / WEIGHTS_FILE) as saved:
        arrays = {name: saved[name] for name in saved if name != "prints_L"}
    write_weights_of_before(tmp_path, arrays)
    assert load_policy(tmp_path).seen.count(make_outcomes(200, seed=1).prompts) == 0


def test_of_many_prompts_the_share_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST", 500)
    known = SeenPrompts().with_more([f"prompt {n}" for n in range(5000)])
    assert len(known.prints_L) == 500
    asked = [f"prompt {n}" for n in range(4000, 6000)]
    assert known.count(asked) == pytest.approx(1000, rel=0.15)


def test_report_and_calibrate_warn_of_rows_that_were_learned_from(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded, out = write_csv(make_outcomes(60), tmp_path / "a.csv"), tmp_path / "mine"
    names = ["--weak", "small", "--strong", "large"]
    assert run(monkeypatch, "fit", recorded, *names, "--out", out, *QUICK) == 0
    capsys.readouterr()
    for command in ("report", "calibrate"):
        assert run(monkeypatch, command, out, recorded, "--json") == 0
        shown = capsys.readouterr()
        assert WARNING in shown.err
        assert json.loads(shown.out)["num_rows_seen"] == 60
