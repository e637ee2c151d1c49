"""Layers: imports go downward only, and what must run without torch does.

The contracts themselves are in pyproject.toml. Next: test_flags.py.
"""

import subprocess
import sys
from pathlib import Path

from tests.rules.tree import PACKAGE, ROOT, python_files

# `cli` may load torch inside a command, so that --help and mistakes answer at once.
WITHOUT_TORCH = (
    "cli/*.py", "errors.py", "files.py", "logs.py", "model/config.py", "model/count.py",
    "model/presets.py", "settings.py", "text/*.py",
)  # fmt: skip


def test_imports_go_downward_only() -> None:
    program = "from importlinter.cli import lint_imports_command as run; run()"
    done = run_python(program, "--no-cache", "--no-logo")
    assert done.returncode == 0, done.stdout


def test_what_a_host_without_a_model_runs_loads_no_torch() -> None:
    files = {path for pattern in WITHOUT_TORCH for path in PACKAGE.glob(pattern)}
    names = ["moestro", *(module_name(path) for path in python_files("moestro") if path in files)]
    program = "\n".join(f"import {name}" for name in names)
    done = run_python(f"{program}\nimport sys\nsys.exit('torch' in sys.modules)")
    assert done.returncode == 0, f"torch was loaded by one of {', '.join(names)}\n{done.stderr}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
