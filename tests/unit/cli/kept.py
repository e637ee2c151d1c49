"""What the tests of keepers run in processes of their own."""

import asyncio
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from moestro.cli.tether import Tether


def note(pipe: Connection, path: Path, word: str) -> None:
    """Write a word once per start, then what is said on the pipe, until the keeper is gone."""
    _append(path, word)
    asyncio.run(_listen(pipe, path))


def fail(pipe: Connection, path: Path, status: int) -> None:
    """End with a status at once."""
    _append(path, f"status {status}")
    sys.exit(status)


def dawdle(pipe: Connection, path: Path) -> None:
    """Ignore every wish to end."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _append(path, "dawdling")
    time.sleep(60)


async def _listen(pipe: Connection, path: Path) -> None:
    tether = Tether(pipe)
    await tether.watch(lambda: _append(path, "gone"), lambda said: _append(path, str(said)))


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")
