"""The native kernels under sanitizers: no byte out of bounds, nothing undefined, no race.

Builds native/tests/ by itself, with threads of its own instead of OpenMP, which sanitizers do not
see into. Knows no Python module.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILER = os.environ.get("CXX", "c++")


def can_build(sanitizers: str, folder: Path) -> bool:
    """Try the compiler on the smallest program: its libraries may be missing."""
    if not all(shutil.which(tool) for tool in ("cmake", "ninja", COMPILER)):
        return False
    command = [COMPILER, "-x", "c++", "-", f"-fsanitize={sanitizers}", "-o", str(folder / "probe")]
    return subprocess.run(command, input=b"int main() {}", capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers: str, tmp_path: Path) -> None:
    if not can_build(sanitizers, tmp_path):
        pytest.skip(f"no compiler with -fsanitize={sanitizers}")
    configure = ["cmake", "-G", "Ninja", "-S", NATIVE, "-B", tmp_path]
    run([*configure, f"-DMOESTRO_SANITIZERS={sanitizers}"])
    run(["cmake", "--build", tmp_path])
    # One check asks for more memory than there is.
    run([tmp_path / "check_native"], ASAN_OPTIONS="allocator_may_return_null=1",
        TSAN_OPTIONS="allocator_may_return_null=1")  # fmt: skip


def run(command: list[str | Path], **variables: str) -> None:
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
