"""A kept process's end of its pipe: what its keeper says, and that the keeper is gone.

Next: keeper.py for the other end.
"""

import asyncio
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Tether:
    """Calls `on_message` for each message, and `on_gone` once when there can be no more."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def watch(
        self, on_gone: Callable[[], None], on_message: Callable[[Any], None] | None = None
    ) -> None:
        """Watch until cancelled, or until the keeper is gone."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()

        def read() -> None:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                gone.set()
                return
            if on_message is not None:
                on_message(message)

        loop.add_reader(self._pipe.fileno(), read)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(self._pipe.fileno())
        on_gone()
