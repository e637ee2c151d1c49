"""The processes of a gateway: workers that share the port, and what they need behind them: one per
local model, and one for the ledger.

Starts them, starts them again, tells workers of a new configuration on SIGHUP, ends them in good
order on SIGINT or SIGTERM: workers first, so that what is under way still has what it needs. Knows
processes and sockets, not requests. Next: keeper.py, worker.py, local_model.py, scribe.py.
"""

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any

from moestro.cli.keeper import USER_MISTAKE, Keeper
from moestro.errors import MoestroError

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# For what is left to do when the requests under way have ended.
_LEAVE_S = 5.0


class Supervisor:
    """Keeps `workers` and who works for them `behind`, by name, until a signal ends them."""

    def __init__(
        self,
        behind: Mapping[str, Keeper],
        workers: Mapping[str, Keeper],
        *,
        drain_s: float,
        reload: Callable[[], None],
        on_death: Callable[[str], None],
    ) -> None:
        """`reload` is called on SIGHUP, `on_death` with the name of a process that died."""
        self.behind = dict(behind)
        self.workers = dict(workers)
        self._leaving: list[Keeper] = []
        self._drain_s = drain_s
        self._reload = reload
        self._on_death = on_death
        self._heard: list[int] = []

    def run(self) -> int:
        """Keep everything until told to stop; return the exit status."""
        with _heard_signals(self._heard) as waker:
            for keeper in self._keepers():
                keeper.start()
            status = self._keep(waker)
            behind = [*self.behind.values(), *self._leaving]
            is_hurried = self._end([*self.workers.values()], behind, waker, is_hurried=False)
            self._end(behind, [], waker, is_hurried=is_hurried)
        return status

    def adopt(self, keeper: Keeper) -> None:
        """Keep one more behind the workers."""
        self.behind[keeper.name] = keeper
        keeper.start()

    def retire(self, name: str) -> None:
        """Let a process end that no worker needs any more."""
        keeper = self.behind.pop(name)
        keeper.ask_to_end()
        self._leaving.append(keeper)

    def _keep(self, waker: socket.socket) -> int:
        while True:
            for number in self._take_signals(waker):
                if number != signal.SIGHUP:
                    return 0
                self._try_reload()
            for keeper in self._keepers():
                self._look(keeper)
            if all(each.is_over for each in self.workers.values()):
                log.error("no worker can run: see why above")
                return USER_MISTAKE
            wait([waker, *self._sentinels(self._keepers())], self._until_due())

    def _look(self, keeper: Keeper) -> None:
        status = keeper.look()
        if status is None:
            return
        if keeper in self._leaving:
            self._leaving.remove(keeper)
            return
        again = "not started again" if keeper.is_over else "starting it again"
        log.error("%s ended with %d: %s", keeper.name, status, again)
        self._on_death(keeper.name)

    def _try_reload(self) -> None:
        try:
            self._reload()
        except MoestroError as error:
            log.error("the configuration stays as it was: %s", error)
        else:
            log.info("the new configuration holds from now on")

    def _end(
        self, keepers: list[Keeper], kept: list[Keeper], waker: socket.socket, *, is_hurried: bool
    ) -> bool:
        """End a group by the deadline, or at once when told a second time; return whether.

        Those `kept` meanwhile are still started again when they die.
        """
        deadline = time.monotonic() + self._drain_s + _LEAVE_S
        for keeper in keepers:
            keeper.ask_to_end()
        while not is_hurried and (left := [each for each in keepers if each.is_alive]):
            if time.monotonic() >= deadline:
                break
            for keeper in kept:
                self._look(keeper)
            due_s = self._until_due()
            left_s = deadline - time.monotonic()
            patience_s = left_s if due_s is None else min(due_s, left_s)
            wait([waker, *self._sentinels([*left, *kept])], max(0.0, patience_s))
            is_hurried = any(each != signal.SIGHUP for each in self._take_signals(waker))
        for keeper in keepers:
            keeper.end()
        return is_hurried

    def _take_signals(self, waker: socket.socket) -> list[int]:
        with suppress(BlockingIOError):
            while waker.recv(4096):
                pass
        heard, self._heard[:] = list(self._heard), []
        return heard

    def _keepers(self) -> list[Keeper]:
        return [*self.behind.values(), *self._leaving, *self.workers.values()]

    def _sentinels(self, keepers: list[Keeper]) -> list[int]:
        return [each.sentinel for each in keepers if each.sentinel is not None]

    def _until_due(self) -> float | None:
        due = [each.due_at for each in self._keepers() if each.due_at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None


@contextmanager
def _heard_signals(heard: list[int]) -> Iterator[socket.socket]:
    """Collect signals in a list; the socket becomes readable when one comes."""
    waker, far_end = socket.socketpair()
    waker.setblocking(False)
    far_end.setblocking(False)

    def hear(number: int, frame: Any) -> None:  # noqa: ANN401 (what signal handlers are given)
        heard.append(number)

    before = {name: signal.signal(name, hear) for name in _SIGNALS}
    old = signal.set_wakeup_fd(far_end.fileno())
    try:
        yield waker
    finally:
        signal.set_wakeup_fd(old)
        for name, handler in before.items():
            signal.signal(name, handler)
        waker.close()
        far_end.close()
