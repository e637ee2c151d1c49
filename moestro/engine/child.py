"""One life of a worker process, seen from its parent: begin it, talk to it, notice its end.

Reads and writes in threads of its own, so that neither a long prompt nor a long step holds up
whoever asks. Knows no requests. Next: process.py.
"""

import atexit
import multiprocessing
import multiprocessing.connection
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from typing import Any

from moestro.engine import worker
from moestro.engine.messages import Command, Fault, Report

# Not forked: a copy of the server's threads and sockets would outlive it.
_CONTEXT = multiprocessing.get_context("spawn")
# What an interpreter may take to shut down.
_LEAVE_S = 5.0


class Child:
    """A process that runs `worker.main`; `on_report` and `on_end` are called from a thread.

    `on_end` gets the exit status, negative for a signal, once the process is gone for good.
    """

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any],
        on_report: Callable[[Report], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._on_report = on_report
        self._on_end = on_end
        self._is_killed = False
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._pipe, self._far_end = _CONTEXT.Pipe()
        self._process: SpawnProcess = _CONTEXT.Process(
            target=worker.main,
            args=(self._far_end, factory, arguments),
            name="moestro-engine",
            daemon=True,
        )

    def start(self) -> None:
        """Start the process; returns before it runs."""
        # Before multiprocessing's own hook, which would wait for a process that ignores SIGTERM.
        atexit.register(self.kill)
        threading.Thread(target=self._live, name="moestro-engine-reader", daemon=True).start()

    def send(self, command: Command) -> None:
        """Pass on a command; what a dead process is told is lost."""
        self._commands.put(command)

    def kill(self) -> None:
        """End the process at once, or as soon as it is there."""
        self._is_killed = True
        if self._process.pid is not None:
            self._process.kill()

    def _live(self) -> None:
        # The process inherits the mask: Ctrl-C cannot reach it before it ignores it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        except OSError as error:
            atexit.unregister(self.kill)
            self._on_report(Fault(f"no process for the engine: {error.strerror}", is_lasting=False))
            self._on_end(1)
            return
        finally:
            self._far_end.close()
        if self._is_killed:
            self._process.kill()
        threading.Thread(target=self._write, name="moestro-engine-writer", daemon=True).start()
        try:
            self._read()
        finally:
            self._bury()

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._on_report(self._pipe.recv())
        self._process.join(_LEAVE_S)

    def _bury(self) -> None:
        self._process.kill()
        self._process.join()
        self._commands.put(None)
        atexit.unregister(self.kill)
        self._on_end(self._process.exitcode or 0)

    def _write(self) -> None:
        while (command := self._commands.get()) is not None:
            try:
                self._pipe.send(command)
            except OSError:
                return
