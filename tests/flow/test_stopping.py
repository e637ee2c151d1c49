"""Commands that are stopped at work: one line, and nothing half-written. Next: test_resume.py."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moestro.cli.main import main
from tests.flow.program import TIMEOUT_S, Ended, start


def test_ctrl_c_anywhere_else_is_one_line(workplace: Path, model: Path) -> None:
    with start("generate", "run", "-", cwd=workplace, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        # More than a pipe holds: it is all written only once the program reads, and waits for more.
        process.stdin.write("alpha " * 100_000)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=TIMEOUT_S)
    ended = Ended(process.returncode, printed, said)
    assert ended.complaint() == "stopped"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_conversion_that_is_stopped_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    drafts = []

    def save_and_stop(lm: object, draft: Path, **others: object) -> None:
        (draft / "model.safetensors").write_bytes(b"half of it")
        drafts.extend(tmp_path.iterdir())
        signal.raise_signal(sent)

    monkeypatch.setattr("moestro.weights.export.save_model", save_and_stop)
    monkeypatch.setattr(sys, "argv", ["moestro", "convert", str(model), str(tmp_path / "new")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert drafts
    assert not list(tmp_path.iterdir())


def test_a_reader_who_has_had_enough_is_no_error(workplace: Path, model: Path) -> None:
    with start("inspect", "run", "--json", cwd=workplace) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
