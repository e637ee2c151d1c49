"""The example of both levels as a user starts it, with models too small to be good at anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import moestro

_ROOT = Path(moestro.__file__).parents[1]
TIMEOUT_S = 500


def train_small_for_one_step(out: Path) -> None:
    """Make the weaker model certainly the weaker one, as a policy for a pair demands.

    Without a planted circuit: a fresh model that copies beats one of twenty steps.
    """
    command = [
        *(sys.executable, "-m", "moestro", "train", str(_ROOT / "configs/small-dense.toml")),
        *("--out", str(out / "small"), "--set", "train.steps=1"),
        *("--set", "train.is_induction_planted=false"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)


def run_example(out: Path) -> str:
    command = [
        *(sys.executable, str(_ROOT / "examples/two_level.py"), "--out", str(out)),
        *("--steps", "120", "--questions", "60"),
    ]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_the_example_trains_serves_learns_and_asks_auto_and_keeps_what_it_trained(
    tmp_path: Path,
) -> None:
    train_small_for_one_step(tmp_path)
    said = run_example(tmp_path)
    assert "small: trained already" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert "10 requests that neither the fit nor the calibration saw" in said
    assert rows["large"][-2:] == ["0.0%", "0.0%"]
    assert rows["small"][-2] == "100.0%"
    assert 0.0 <= float(rows["auto"][1]) <= 1.0

    lines = (tmp_path / "calibration.jsonl").read_text().splitlines()
    outcomes = [json.loads(line) for line in lines]
    assert len(outcomes) == 30
    assert all(outcome["logprobs"]["small"] for outcome in outcomes)
    # No floor can be shown with 30 rows, so that the policy has to be careful.
    policy = json.loads((tmp_path / "policy/policy.json").read_text())
    assert policy["evidence"]["is_always_strongest"]
    assert rows["auto"][1] == rows["large"][1]

    again = run_example(tmp_path)
    assert again.count("trained already") == 2
