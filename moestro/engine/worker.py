"""The process that owns an engine: takes commands from a pipe, steps, sends back what happened.

Knows no text and no asyncio, and loads torch only through the factory that it is given, so that a
server can import it for nothing. Next: process.py for the other end of the pipe, engine.py.
"""

import importlib
import logging
import math
import select
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

from moestro import logs
from moestro.engine.messages import (
    Abort,
    AskStats,
    Command,
    Cut,
    Fault,
    Loading,
    Ready,
    StepEvents,
    Submit,
)
from moestro.engine.request import EngineRequest, Event, FailEvent
from moestro.engine.stats import EngineStats
from moestro.errors import BackendError, MoestroError

log = logging.getLogger(__name__)

# Often enough for a page that moves, too seldom to cost anything.
STATS_EVERY_S = 0.25

ReportProgress = Callable[[str, float], None]


class EngineLike(Protocol):
    """What the worker needs of an engine: engine.py's, or a fake in tests."""

    def submit(self, request: EngineRequest) -> None:
        """Take a request, or raise a MoestroError if it can never run."""

    def abort(self, request_id: str) -> None:
        """Forget a request at once; unknown ids are ignored."""

    def cut(self, request_id: str, choice: int) -> None:
        """End one choice as it is; unknown ones are ignored."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def step(self, wake_file: int | None = None) -> list[Event]:
        """Advance every running request; not for long once `wake_file` can be read."""

    def stats(self) -> EngineStats:
        """Return what is counted."""


def main(pipe: Connection, factory: str, arguments: Mapping[str, Any]) -> None:
    """Build the engine that `factory`, "module:function", makes, and serve it to the pipe's end.

    The function gets the arguments and `report_progress`. The process ends with status 0 when the
    other end of the pipe closes, as it does when the parent dies, and with 1 when the engine fails.
    """
    # Ctrl-C and a service's stop reach every process of the group, but requests may be under way:
    # when to end is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.apply(is_beside_progress=True)
    try:
        worker = Worker(_build(pipe, factory, arguments), pipe)
        # The other end closed. A loader's own end of file is no such thing.
        with suppress(EOFError):
            worker.run()
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:  # The worker loop: whatever went wrong, the parent must hear of it.
        log.exception("the engine failed")
        _end(pipe, Fault(f"{type(error).__name__}: {error}", is_lasting=False))


def _build(pipe: Connection, factory: str, arguments: Mapping[str, Any]) -> EngineLike:
    def report_progress(stage: str, fraction: float) -> None:
        pipe.send(Loading(stage, fraction))

    module, _, function = factory.partition(":")
    build = getattr(importlib.import_module(module), function)
    try:
        engine: EngineLike = build(**arguments, report_progress=report_progress)
    except MoestroError as error:
        # Another try would end in the same way; what goes wrong later is one request's bad luck.
        _end(pipe, Fault(str(error), is_lasting=True))
    pipe.send(Ready())
    return engine


def _end(pipe: Connection, fault: Fault) -> NoReturn:
    try:
        pipe.send(fault)
    except OSError:
        log.error("nobody is left to hear it: %s", fault.message)
    raise SystemExit(1)


class Worker:
    """Feeds an engine from a pipe."""

    def __init__(
        self,
        engine: EngineLike,
        pipe: Connection,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._pipe = pipe
        # Asked in each step, for which the pipe's own way of waiting takes twenty times as long.
        self._commands = select.poll()
        self._commands.register(pipe.fileno(), select.POLLIN)
        self._clock = clock
        self._events: list[Event] = []
        self._has_news = True
        self._counted_at = -STATS_EVERY_S

    def run(self) -> None:
        """Take commands and step for ever; EOFError ends it when the other end closes."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take commands, make one step if there is work, report."""
        self._take_commands()
        if self._engine.has_work:
            self._events += self._engine.step(self._pipe.fileno())
            self._has_news = True
        self._report()

    def _take_commands(self) -> None:
        """Take all that has come; wait for something only if there is nothing to do."""
        wait_s: float | None = 0
        if not self._engine.has_work and not self._events:
            wait_s = self._stats_due_s() if self._has_news else None
        while self._commands.poll(None if wait_s is None else math.ceil(wait_s * 1000)):
            self._apply(self._pipe.recv())
            wait_s = 0

    def _apply(self, command: Command) -> None:
        match command:
            case Submit(request):
                self._submit(request)
            case Abort(request_id):
                self._engine.abort(request_id)
                self._has_news = True
            case Cut(request_id, choice):
                self._engine.cut(request_id, choice)
            case AskStats():
                self._has_news = True

    def _submit(self, request: EngineRequest) -> None:
        try:
            self._engine.submit(request)
        except MoestroError as error:
            is_callers = not isinstance(error, BackendError)
            failed = _fail(request, str(error), is_callers_fault=is_callers, param=error.param)
        except Exception as error:  # The worker loop: one odd request must not end the others.
            log.exception("request %s could not be taken", request.id)
            reason = f"the engine could not take the request ({type(error).__name__}: {error})"
            failed = _fail(request, reason, is_callers_fault=False)
        else:
            return
        # Whatever the engine had made of it already must not stay.
        self._engine.abort(request.id)
        self._events.append(failed)

    def _report(self) -> None:
        # First: counting takes most of a millisecond, and somebody may wait for a first token.
        if self._events:
            self._pipe.send(StepEvents(tuple(self._events)))
            self._events = []
        if self._has_news and self._stats_due_s() <= 0:
            self._pipe.send(StepEvents(stats=self._engine.stats()))
            self._counted_at = self._clock()
            self._has_news = False

    def _stats_due_s(self) -> float:
        return max(0.0, self._counted_at + STATS_EVERY_S - self._clock())


def _fail(
    request: EngineRequest, message: str, *, is_callers_fault: bool, param: str | None = None
) -> FailEvent:
    return FailEvent(
        request_id=request.id, message=message, is_callers_fault=is_callers_fault, param=param
    )
