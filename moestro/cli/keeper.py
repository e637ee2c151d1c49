"""Child processes that are kept: started again when they die, told things, ended in good order.

A process that ends with status 2 was stopped by its user's mistake and is not started again. Each
holds one end of a pipe, and so notices when whoever keeps it is gone. Knows nothing of what they
do. Next: supervisor.py.
"""

import logging
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

log = logging.getLogger(__name__)

# Not forked: a copy of threads and sockets would outlive its origin.
_CONTEXT = multiprocessing.get_context("spawn")
USER_MISTAKE = 2
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0
# Whoever lived that long did not die of how it was started.
_SETTLED_S = 10.0


class Keeper:
    """One child: `target(pipe, *arguments)` in a process of its own, whatever becomes of it.

    `restarts` counts how often it was started again. Not for several threads.
    """

    def __init__(self, name: str, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.name = name
        self.restarts = 0
        self._target = target
        self._arguments = arguments
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._began_at = 0.0
        self._pause_s = 0.0
        self._due_at: float | None = None
        self._is_leaving = False

    @property
    def pid(self) -> int | None:
        """The process's id, None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def sentinel(self) -> int | None:
        """What becomes ready, for `multiprocessing.connection.wait`, when the process ends."""
        return None if self._process is None else self._process.sentinel

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.exitcode is None

    @property
    def is_over(self) -> bool:
        """Whether there is no process and will be none."""
        return self._process is None and self._due_at is None

    @property
    def due_at(self) -> float | None:
        """When it is to be started again, by the monotonic clock."""
        return self._due_at

    def start(self) -> None:
        """Start the process; returns before it runs."""
        self._pipe, far_end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=self._target, args=(far_end, *self._arguments), name=f"moestro-{self.name}"
        )
        self._process.start()
        far_end.close()
        self._began_at = time.monotonic()
        self._due_at = None

    def tell(self, message: object, arguments: tuple[Any, ...]) -> None:
        """Send a message to the process, and start later ones with other arguments."""
        self._arguments = arguments
        if self._pipe is not None:
            try:
                self._pipe.send(message)
            except OSError:
                log.debug("%s is gone before it could be told", self.name)

    def look(self) -> int | None:
        """Note a death: return its status and plan the next start. Start what is due."""
        if self._process is not None and self._process.exitcode is not None:
            return self._bury()
        if self._due_at is not None and time.monotonic() >= self._due_at:
            self.restarts += 1
            self.start()
        return None

    def ask_to_end(self) -> None:
        """Let the process end what is under way; it is not started again."""
        self._due_at = None
        self._is_leaving = True
        if self._process is not None:
            self._process.terminate()

    def end(self) -> None:
        """End the process at once."""
        self._due_at = None
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._close()

    def _bury(self) -> int:
        assert self._process is not None
        status = self._process.exitcode or 0
        self._process.join()
        self._close()
        if status == USER_MISTAKE or self._is_leaving:
            return status
        now = time.monotonic()
        is_settled = now - self._began_at >= _SETTLED_S
        longer_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._pause_s = _FIRST_PAUSE_S if is_settled else longer_s
        self._due_at = now + self._pause_s
        return status

    def _close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None
