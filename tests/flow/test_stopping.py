"""Commands that are stopped at work: one line, and nothing half-written. Next: test_resume.py."""

import os
import signal
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

import moestro
from moestro.__main__ import main as outermost
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


def test_ctrl_c_while_the_program_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopping(MetaPathFinder):
        def find_spec(self, name: str, *others: object) -> None:
            if name == "moestro.cli.main":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.delitem(sys.modules, "moestro.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Stopping(), *sys.meta_path])
    with pytest.raises(SystemExit, match="2"):
        outermost()
    assert capsys.readouterr() == ("", "moestro: stopped\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize(
    "words", [("--version",), ("inspect", "run", "--json"), ("keys", "--help")]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_one_line(
    workplace: Path, model: Path, words: tuple[str, ...], unbuffered: str
) -> None:
    place = {"PYTHONPATH": str(Path(moestro.__file__).parents[1]), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "moestro", *words],
            cwd=workplace,
            env=os.environ | place,
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )
    said = "moestro: standard output: No space left on device: write to where there is room\n"
    assert (ended.returncode, ended.stderr) == (2, said)


def test_a_reader_who_has_had_enough_is_no_error(workplace: Path, model: Path) -> None:
    with start("inspect", "run", "--json", cwd=workplace) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
