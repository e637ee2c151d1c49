"""READ FIRST: an engine in a process of its own, as an asyncio program sees it.

Starts it, hands it requests, deals out what it reports; when it dies or hangs, fails the requests
under way at once and starts another. Knows no text. Next: child.py, worker.py for the other side.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from moestro.engine.child import Child
from moestro.engine.messages import (
    Abort,
    AskStats,
    Cut,
    Fault,
    Loading,
    Ready,
    Report,
    StepEvents,
    Submit,
)
from moestro.engine.request import EndEvent, EngineRequest, Event, FailEvent
from moestro.engine.stats import EngineStats
from moestro.errors import BackendError

log = logging.getLogger(__name__)

# When to ask again whoever is not ready: a gateway takes it for time asked for, not for a failure.
_RETRY_S = 1.0
# An engine is asked for a sign of life in so many parts of `watchdog_s`, and must leave all out.
_NUM_ASKED = 8

ProcessState = Literal["loading", "ready", "restarting", "stopped"]


@dataclass(frozen=True, kw_only=True)
class RestartConfig:
    """How often a dead engine is started again, and when one that lives counts as dead.

    A death is quick if the engine was ready for less than `quick_s`; after `max_quick` of them in
    a row nothing more is tried. The pause before a try doubles from `first_pause_s` on. A request
    that comes meanwhile waits up to `patience_s`. An engine that was ready and gives no sign for
    `watchdog_s`, which has to be longer than a step, is stuck and is killed; None lets it hang.
    """

    quick_s: float = 10.0
    max_quick: int = 5
    first_pause_s: float = 0.1
    patience_s: float = 30.0
    watchdog_s: float | None = None


class Feed:
    """What happens to one request: the events of one step at a time."""

    def __init__(self) -> None:
        self._steps: asyncio.Queue[list[Event] | BackendError] = asyncio.Queue()

    def push(self, step: list[Event] | BackendError) -> None:
        """Add the events of a step, or the reason why there will be none."""
        self._steps.put_nowait(step)

    async def next(self) -> list[Event]:
        """Wait for the next step's events; BackendError when the engine died."""
        step = await self._steps.get()
        if isinstance(step, BackendError):
            raise step
        return step


class EngineProcess:
    """One engine, whatever happens to its process.

    `progress` and `stage` say how far loading is, `restarts` how often it was started again,
    `hangs` how often because it was stuck, `fault` why it stopped for good, `stats` what it counted
    last since its latest start.
    """

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any],
        restart: RestartConfig | None = None,
    ) -> None:
        """Take the factory, "module:function", and its arguments, as `worker.main` does."""
        self.state: ProcessState = "loading"
        self.stage = "starting"
        self.progress = 0.0
        self.restarts = 0
        self.hangs = 0
        self.fault: BackendError | None = None
        self.stats: EngineStats | None = None
        self._factory = factory
        self._arguments = arguments
        self._restart = restart or RestartConfig()
        self._feeds: dict[str, Feed] = {}
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        self._load_s = 0.0
        self._ready_at: float | None = None
        self._last_fault: Fault | None = None
        self._gave_sign = False

    async def start(self) -> None:
        """Begin to load; a second call changes nothing."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the process at once; what is under way fails, and nothing else is lost."""
        self._stopping.set()
        self._enter("stopped")
        if self._child is not None:
            self._child.kill()
        if self._keeper is not None:
            await self._keeper

    async def wait_ready(self) -> None:
        """Return when requests are taken; BackendError if that is not now or soon.

        A first load is not waited for, because it may take minutes and `state` tells of it.
        """
        patience_s = self._restart.patience_s
        if self.state == "restarting" and self._load_s < patience_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), patience_s)
        if self.state == "stopped":
            reason = self.fault or "it was told to"
            raise BackendError(f"the engine has stopped ({reason}): start the server again")
        if self.state != "ready":
            raise BackendError(
                f"the model is {self.state}, {self.progress:.0%} done: try again in a moment",
                _RETRY_S,
            )

    def submit(self, request: EngineRequest) -> Feed:
        """Hand over a request; its events end with an EndEvent or a FailEvent, or with an error."""
        if self.state != "ready" or self._child is None:
            raise BackendError(f"the model is {self.state}: try again in a moment", _RETRY_S)
        feed = self._feeds[request.id] = Feed()
        self._child.send(Submit(request))
        return feed

    def abort(self, request_id: str) -> None:
        """Forget a request; one that has ended already is no matter."""
        if self._feeds.pop(request_id, None) is not None and self._child is not None:
            self._child.send(Abort(request_id))

    def cut(self, request_id: str, choice: int) -> None:
        """End one choice as it is; its request goes on to its EndEvent."""
        if request_id in self._feeds and self._child is not None:
            self._child.send(Cut(request_id, choice))

    def ask_stats(self) -> None:
        """Have `stats` brought up to date in a moment."""
        if self.state == "ready" and self._child is not None:
            self._child.send(AskStats())

    async def _keep(self) -> None:
        num_quick = 0
        while not self._stopping.is_set():
            status = await self._live_once()
            if self._stopping.is_set():
                break
            num_quick = num_quick + 1 if self._was_quick() else 1
            reason = self._last_fault.message if self._last_fault else _describe(status)
            is_lasting = self._last_fault is not None and self._last_fault.is_lasting
            self._fail_all(f"the engine died ({reason}): send the request again")
            if is_lasting or num_quick >= self._restart.max_quick:
                self.fault = BackendError(reason)
                log.error("the engine has stopped for good: %s", reason)
                self._enter("stopped")
                return
            log.error("the engine died (%s): starting it again", reason)
            self._enter("restarting")
            self.restarts += 1
            with suppress(TimeoutError):
                pause_s = self._restart.first_pause_s * 2 ** (num_quick - 1)
                await asyncio.wait_for(self._stopping.wait(), pause_s)
        self._fail_all("the server stopped before the answer was complete: send the request again")

    async def _live_once(self) -> int:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        began, self._ready_at, self._last_fault = loop.time(), None, None

        def on_report(report: Report) -> None:
            _call(loop, lambda: self._receive(report, began))

        def on_end(status: int) -> None:
            _call(loop, lambda: None if ended.done() else ended.set_result(status))

        child = self._child = Child(self._factory, self._arguments, on_report, on_end)
        child.start()
        watchdog = asyncio.create_task(self._watch(child))
        try:
            return await ended
        finally:
            watchdog.cancel()
            # Gone already, unless the event loop itself is being shut down.
            child.kill()

    async def _watch(self, child: Child) -> None:
        """Kill an engine that is stuck; what follows is what follows any death."""
        limit_s = self._restart.watchdog_s
        if limit_s is None:
            return
        # Times asked and not seconds: while this program or the whole machine was suspended, the
        # engine was not asked, whatever the clock says.
        num_silent = 0
        while num_silent < _NUM_ASKED:
            self._gave_sign = False
            self.ask_stats()
            await asyncio.sleep(limit_s / _NUM_ASKED)
            is_silent = self.state == "ready" and not self._gave_sign
            num_silent = num_silent + 1 if is_silent else 0
        reason = f"no sign of life for {limit_s:g} s"
        log.error("the engine is stuck (%s): killing it", reason)
        self.hangs += 1
        self._last_fault = Fault(reason, is_lasting=False)
        # Before it is gone: a driver can hold a killed process for long.
        self._enter("restarting")
        self._fail_all(f"the engine was stuck ({reason}): send the request again")
        child.kill()

    def _receive(self, report: Report, began: float) -> None:
        self._gave_sign = True
        match report:
            case StepEvents(events, stats):
                self._deal_out(events)
                self.stats = stats or self.stats
            case Loading(stage, fraction):
                self.stage, self.progress = stage, fraction
            case Fault():
                self._last_fault = report
            case Ready() if not self._stopping.is_set():
                self._ready_at = asyncio.get_running_loop().time()
                self._load_s = self._ready_at - began
                self._enter("ready")

    def _deal_out(self, events: tuple[Event, ...]) -> None:
        steps: dict[str, list[Event]] = {}
        for event in events:
            steps.setdefault(event.request_id, []).append(event)
        for request_id, step in steps.items():
            feed = self._feeds.get(request_id)
            # Steps that were under way when their request was aborted have no reader any more.
            if feed is None:
                continue
            feed.push(step)
            if isinstance(step[-1], EndEvent | FailEvent):
                del self._feeds[request_id]

    def _fail_all(self, message: str) -> None:
        feeds, self._feeds = self._feeds, {}
        for feed in feeds.values():
            feed.push(BackendError(message))

    def _enter(self, state: ProcessState) -> None:
        self.state = state
        self.progress = 1.0 if state == "ready" else 0.0
        if state == "restarting":
            self._settled.clear()
        else:
            self._settled.set()

    def _was_quick(self) -> bool:
        if self._ready_at is None:
            return True
        lived_s = asyncio.get_running_loop().time() - self._ready_at
        return lived_s < self._restart.quick_s


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        log.debug("the server is gone before its engine")


def _describe(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"its process ended with {status}"
