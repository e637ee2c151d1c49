"""What `moestro train` says at its end."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moestro.cli.train import summarize
from moestro.errors import CheckpointError


def test_a_finished_run_whose_metrics_are_gone_says_which_file_is_missing(tmp_path: Path) -> None:
    trained: Any = SimpleNamespace(checkpoint=tmp_path / "checkpoints" / "step-00000009")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: holds no steps.*step-00000009"):
        summarize(tmp_path, trained)


def test_speed_and_its_share_of_the_peak_are_of_the_same_steps(tmp_path: Path) -> None:
    rates = [300.0, 400.0, 500.0, 10.0]
    rows = [
        {"step": n, "loss": 5.0, "tokens": n, "seconds": 1.0, "tokens_per_s": r, "mfu": r / 1000}
        for n, r in enumerate(rates, start=1)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    trained: Any = SimpleNamespace(checkpoint=tmp_path / "checkpoints" / "step-00000004")
    summary = summarize(tmp_path, trained)
    assert summary["tokens_per_s"] == 350.0
    assert summary["mfu"] == pytest.approx(0.35)
