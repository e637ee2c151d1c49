"""The `moestro` program in processes of its own: started as a shell does, or forked ready to run.

Python with torch takes seconds to start, so that only one use of each command is started whole.
Next: conftest.py, test_commands.py.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moestro
from moestro.cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "torch.utils.tensorboard",
    "torch._dynamo",
    "safetensors.torch",
    "moestro.cli.main",
    "moestro.lm.review",
    "moestro.train.loop",
]
_ROOT = Path(moestro.__file__).parents[1]
TIMEOUT_S = 120


@dataclass(frozen=True)
class Ended:
    """What a process left: its status, and what stands on standard output and standard error."""

    status: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """Return the one JSON document on standard output of a process that went well."""
        assert self.status == 0, self.err
        assert self.out.count("\n") == 1, self.out
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def complaint(self) -> str:
        """Return the one line that a mistake gets, after at most the names of finished stages."""
        *before, last = self.err.splitlines()
        assert self.status == 2, self.err
        assert last.startswith("moestro: "), self.err
        assert not [line for line in before if line.startswith(("moestro: ", "Traceback", " "))]
        assert not self.out
        return last.removeprefix("moestro: ")


def start(
    *arguments: object, cwd: Path, stdin: int = subprocess.DEVNULL
) -> "subprocess.Popen[str]":
    """Start `python -m moestro`."""
    return subprocess.Popen(
        [sys.executable, "-m", "moestro", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run(*arguments: object, cwd: Path) -> Ended:
    """Start `python -m moestro` and wait for its end."""
    with start(*arguments, cwd=cwd) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    return Ended(process.returncode, out, err)


def fork(*arguments: object, cwd: Path) -> Ended:
    """Run the program in a process that is forked from one that has imported what it needs."""
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as name:
        process = _CONTEXT.Process(target=_main, args=([*map(str, arguments)], cwd, Path(name)))
        process.start()
        try:
            process.join(TIMEOUT_S)
            status = process.exitcode
        finally:
            process.kill()
            process.join()
            process.close()
        out, err = (Path(name, part).read_text(encoding="utf-8") for part in ("out", "err"))
    assert status is not None, f"did not end: {arguments} {err}"
    return Ended(status, out, err)


def _main(arguments: list[str], cwd: Path, folder: Path) -> None:
    os.chdir(cwd)
    for handle, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), handle)
    sys.argv = ["moestro", *arguments]
    main()
