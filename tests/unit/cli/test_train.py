"""What `moestro train` says at its end."""

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
