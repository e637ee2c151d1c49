"""What requests look like on live traffic: when they stop looking like the calibration rows, `auto`
goes to the strongest model.

All workers share one test: each takes its own requests there, a few at a time. Next:
policy/shift.py, floor_watch.py.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from prometheus_client import Gauge

from moestro.errors import CapacityError, DataError, StorageError
from moestro.policy.shift import ShiftMonitor
from moestro.records.outcomes import State
from moestro.records.records import Records

log = logging.getLogger(__name__)

_LOOK_S = 0.5
# So many new requests do not wait for the next look, or a part of all before where that is more: a
# shift is found soon after the start, and a busy worker does not write all the time.
_FEW, _PART = 16, 1 / 16
# More than that are forgotten while the database is away, the oldest first.
_MOST_WAITING = 4096


class ShiftWatch:
    """Whether requests look as they should, by what all workers have seen."""

    def __init__(self, records: Records, name: str, monitor: ShiftMonitor, gauge: Gauge) -> None:
        """`name` is that of the calibration."""
        self.monitor = monitor
        self.lost_at: float | None = None
        self._records = records
        self._name = f"shift:{name}:{monitor.tolerance:g}"
        self._gauge = gauge
        self._gauge.set(1)
        self._waiting: deque[Mapping[str, float]] = deque(maxlen=_MOST_WAITING)
        self._has_enough = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """False as soon as the evidence says otherwise."""
        return self.monitor.is_held

    def note(self, signs: Mapping[str, float]) -> None:
        """Take a request's signs, to be counted soon."""
        self._waiting.append(signs)
        if len(self._waiting) >= max(_FEW, _PART * self.monitor.num_requests):
            self._has_enough.set()

    async def run(self) -> None:
        """Count requests, and follow what other workers count, until cancelled."""
        while True:
            with suppress(StorageError, CapacityError):
                await self._look()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_enough.wait(), _LOOK_S)

    async def _look(self) -> None:
        self._has_enough.clear()
        taken, was_held = list(self._waiting), self.is_held
        self._waiting.clear()
        try:
            if taken and was_held:
                state = await self._records.change_state(self._name, partial(self._step, taken))
            else:
                state = await self._records.state(self._name)
        except StorageError:
            self._waiting = deque([*taken, *self._waiting], maxlen=_MOST_WAITING)
            raise
        self.monitor, self.lost_at = self._read(state), state.get("lost_at")
        self._gauge.set(self.is_held)
        if was_held and not self.is_held:
            log.error(
                "requests for auto do not look like the calibration rows any more (%d were seen):"
                " auto goes to the strongest model until `moestro policy calibrate` has run on"
                " newer outcomes",
                self.monitor.num_requests,
            )

    def _step(self, taken: Sequence[Mapping[str, float]], state: State) -> State:
        monitor = self._read(state)
        for signs in taken:
            monitor.observe(signs)
        lost_at = state.get("lost_at") or (None if monitor.is_held else time.time())
        return {**monitor.to_dict(), "lost_at": lost_at}

    def _read(self, state: State) -> ShiftMonitor:
        try:
            return self.monitor.renewed(state)
        except DataError as error:
            # Another version's, maybe: a watch that goes on is worth more than what it had seen.
            log.warning("%s", error)
            return self.monitor.renewed({})
