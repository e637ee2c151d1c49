"""The commands as a person types them: fit, report, join, and one line for each mistake."""

import json
import sys
from pathlib import Path

import pytest

from moestro.cli import main as program
from tests.unit.policy.made_outcomes import make_outcomes, write_csv, write_json_lines

QUICK = ["--set", "learn.strengths=[8.0]", "--set", "learn.num_folds=2"]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run one command; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["moestro", "policy", *map(str, words)])
    try:
        program.main()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_a_pair_is_fitted_and_reported_as_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded, out = write_csv(make_outcomes(), tmp_path / "a.csv"), tmp_path / "mine"
    names = ["--weak", "small", "--strong", "large", "--set", "prices.small=0.1"]
    assert run(monkeypatch, "fit", recorded, *names, "--out", out, *QUICK, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "pair"
    assert run(monkeypatch, "report", out, recorded, "--json") == 0
    assert json.loads(capsys.readouterr().out)["apgr"]["value"] > 0.5


def test_a_pool_is_fitted_and_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = write_json_lines(make_outcomes(80, 3), tmp_path / "a.jsonl")
    scored, out = write_csv(make_outcomes(40), tmp_path / "b.csv"), tmp_path / "mine"
    assert run(monkeypatch, "fit", recorded, "--out", out, *QUICK) == 0
    price = ["--set", "prices.large.input=1", "--set", "prices.large.output=2"]
    assert run(monkeypatch, "join", out, scored, "--model", "large", *price) == 0
    assert "policy written to" in capsys.readouterr().out
    saved = json.loads((out / "policy.json").read_text())
    assert "large" in saved["models"]
    assert saved["prices"]["large"]["output_usd_per_mtok"] == 2


def test_no_calibration_is_lost_in_silence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded = write_csv(make_outcomes(80, 3), tmp_path / "a.csv")
    scored, out = write_csv(make_outcomes(40), tmp_path / "b.csv"), tmp_path / "mine"
    fit = ("fit", recorded, "--out", out, *QUICK)
    assert run(monkeypatch, *fit) == 0
    assert run(monkeypatch, *fit) == 0
    assert "holds no more" not in caplog.text
    for change in (fit, ("join", out, scored, "--model", "large")):
        assert run(monkeypatch, "calibrate", out, recorded) == 0
        caplog.clear()
        assert run(monkeypatch, *change) == 0
        assert "holds no more: run `moestro policy calibrate" in caplog.text
        caplog.clear()
        assert run(monkeypatch, *fit) == 0
        assert "holds no more" not in caplog.text
    (out / "policy.json").write_text("{")
    assert run(monkeypatch, *fit) == 0


def test_a_pair_is_shown_beside_its_baselines_in_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recorded, out = write_csv(make_outcomes(), tmp_path / "a.csv"), tmp_path / "mine"
    names = ["--weak", "small", "--strong", "large"]
    assert run(monkeypatch, "fit", recorded, *names, "--out", out, *QUICK) == 0
    assert "learning from" in capsys.readouterr().err
    assert run(monkeypatch, "report", out, recorded) == 0
    shown = capsys.readouterr().out
    assert "apgr            cpt50           cpt80           strong_share_at_95" in shown
    begins = [line.split("  ")[0] for line in shown.splitlines()]
    assert begins[2:10:2] == ["this policy", "length", "random", "oracle"]
    # Nobody is born with the words of one paper.
    assert "apgr: the part of the gap" in shown
    assert "as calibrated" not in shown
    assert run(monkeypatch, "calibrate", out, recorded, "--floor", 0.5) == 0
    assert run(monkeypatch, "report", out, recorded) == 0
    assert "as calibrated" in capsys.readouterr().out


@pytest.mark.parametrize(("prices", "is_priced"), [([], False), (["--set", "prices.m0=2"], True)])
def test_a_pool_is_shown_model_by_model_with_costs_where_there_are_prices(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prices: list[str],
    is_priced: bool,
) -> None:
    recorded, out = write_json_lines(make_outcomes(80, 3), tmp_path / "a.jsonl"), tmp_path / "mine"
    assert run(monkeypatch, "fit", recorded, "--out", out, *QUICK, *prices) == 0
    assert run(monkeypatch, "report", out, recorded) == 0
    shown = capsys.readouterr().out
    models = json.loads((out / "policy.json").read_text())["models"]
    begins = [line.split(" ")[0] for line in shown.splitlines()]
    assert set(models) <= set(begins)
    assert ("1,000 requests" in shown) == is_priced


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weak", "small"], "go together"),
        (["--weak", "tiny", "--strong", "large"], "tiny: no such model"),
        (["--set", "prices.small=-1"], "from 0 on"),
        (["--set", "prices=3"], "give prices.NAME=NUMBER"),
        (["--set", "learn.strength=3"], "unknown setting"),
        (["--set", "floor=1"], "known: learn, prices"),
        (["--prices", "none.json"], "no such file"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    recorded = write_csv(make_outcomes(), tmp_path / "a.csv")
    assert run(monkeypatch, "fit", recorded, "--out", tmp_path / "mine", *words) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


def test_join_knows_prices_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = write_csv(make_outcomes(), tmp_path / "a.csv")
    assert run(monkeypatch, "join", tmp_path, recorded, "--model", "x", "--set", "a=1") == 2
    assert "known: prices" in capsys.readouterr().err
