"""A process' children, as Linux lists them: what must be there, and what must be gone.

Next: test_engine_process.py, test_serve.py.
"""

from contextlib import suppress
from pathlib import Path


def children_of(pid: int | str) -> list[int]:
    """List the processes that a process started and that were not waited for, zombies included."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread may end between being listed and being read; another has its children then.
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, path.read_text().split())
    return found
