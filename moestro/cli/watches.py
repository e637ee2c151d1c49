"""All that is watched of a policy on live traffic, and what of it speaks against the policy.

Next: floor_watch.py, shift_watch.py.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from moestro.api.policy_view import WatchView
from moestro.cli.floor_watch import FloorWatch
from moestro.cli.shift_watch import ShiftWatch
from moestro.gateway.fleet import ShiftConfig
from moestro.policy.shift import ShiftMonitor
from moestro.records.records import Records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watches:
    """A gateway's trust in a policy; left out, nothing is watched and nothing doubted."""

    floor: FloorWatch | None = None
    shift: ShiftWatch | None = None

    @property
    def doubt(self) -> str | None:
        """Why the policy's promise does not hold, None as long as nothing speaks against it."""
        if self.floor is not None and not self.floor.is_held:
            return "floor lost"
        if self.shift is not None and not self.shift.is_held:
            return "traffic shifted"
        return None

    def note(self, signs: Mapping[str, float]) -> None:
        """Take the signs of a request that the policy decided."""
        if self.shift is not None:
            self.shift.note(signs)

    async def run(self) -> None:
        """Follow what is to be seen until cancelled."""
        running = [watch.run() for watch in (self.floor, self.shift) if watch is not None]
        await asyncio.gather(*running)

    def view(self) -> tuple[WatchView, ...]:
        """Return how each does now."""
        views = []
        if self.floor is not None:
            views.append(_view("floor", self.floor, self.floor.monitor.num_audits))
        if self.shift is not None:
            views.append(_view("shift", self.shift, self.shift.monitor.num_requests))
        return tuple(views)


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """1 for what holds, 0 for what was lost; 1 as well where there is nothing to lose."""

    floor: Gauge
    shift: Gauge


def build_gauges(registry: CollectorRegistry) -> Gauges:
    """Make the gauges of a worker."""
    texts = {
        "floor_held": "1 while the evidence does not speak against the floor, 0 once it does.",
        "traffic_held": "1 while requests look like the calibration rows, 0 once they do not.",
    }
    floor, shift = (
        Gauge(f"moestro:gateway_{name}", text, registry=registry, multiprocess_mode="min")
        for name, text in texts.items()
    )
    for gauge in (floor, shift):
        gauge.set(1)
    return Gauges(floor=floor, shift=shift)


def build_watches(
    records: Records, name: str, evidence: Mapping[str, Any], config: ShiftConfig, gauges: Gauges
) -> Watches:
    """Return what can be watched by what the calibration, called `name`, left as evidence."""
    for gauge in (gauges.floor, gauges.shift):
        gauge.set(1)
    if "floor" not in evidence:
        return Watches()
    floor = FloorWatch(records, name, float(evidence["floor"]), gauges.floor)
    if config.tolerance == 1.0:
        return Watches(floor)
    if "reference" not in evidence:
        log.warning(
            "the policy was calibrated by an earlier version: `moestro policy calibrate` it again"
            " to have it noticed when requests stop looking like the calibration rows"
        )
        return Watches(floor)
    monitor = ShiftMonitor(evidence["reference"], config.tolerance)
    return Watches(floor, ShiftWatch(records, name, monitor, gauges.shift))


def _view(name: str, watch: FloorWatch | ShiftWatch, num_observed: int) -> WatchView:
    return WatchView(
        name=name,
        is_held=watch.is_held,
        evidence=watch.monitor.evidence,
        alarm_at=watch.monitor.alarm_at,
        num_observed=num_observed,
        lost_at=watch.lost_at,
    )
