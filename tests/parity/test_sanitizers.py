"""The native kernels under sanitizers: no byte out of bounds, nothing undefined, no race.

Builds native/tests/ by itself, with threads of its own instead of OpenMP, which sanitizers do not
see into. Knows no Python module.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILER = os.environ.get("CXX", "c++")
# cmake and ninja come as Python packages.
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def can_build(sanitizers: str, folder: Path) -> bool:
    """Try the compiler on the smallest program: its libraries may be missing."""
    if not all(shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja", COMPILER)):
        return False
    command = [COMPILER, "-x", "c++", "-", f"-fsanitize={sanitizers}", "-o", str(folder / "probe")]
    probe = subprocess.run(command, input=b"int main() {}", capture_output=True, check=False)
    return probe.returncode == 0


@pytest.mark.slow
# Ten files to compile, beside whatever else a machine does.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers: str, tmp_path: Path) -> None:
    if not can_build(sanitizers, tmp_path):
        pytest.skip(f"no compiler with -fsanitize={sanitizers}")
    configure = ["cmake", "-G", "Ninja", "-S", str(NATIVE), "-B", str(tmp_path)]
    run([*configure, f"-DMOESTRO_SANITIZERS={sanitizers}"])
    run(["cmake", "--build", str(tmp_path)])
    run([str(tmp_path / "check_native")])


def run(command: list[str]) -> None:
    found = shutil.which(command[0], path=TOOLS)
    assert found is not None
    done = subprocess.run(
        [found, *command[1:]],
        env=os.environ | {"PATH": TOOLS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
