"""What requests look like, by what all workers see: a shift is found, kept, and trusted by nobody.

Next: test_floor_watch.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge

from moestro.cli import shift_watch
from moestro.cli.shift_watch import ShiftWatch
from moestro.cli.watches import Watches, build_gauges, build_watches
from moestro.errors import StorageError
from moestro.gateway.fleet import ShiftConfig
from moestro.policy.shift import ShiftMonitor, describe_signs
from moestro.records.records import Records
from tests.unit.cli.following import follow

StartRecords = Callable[..., Records]


def signs(mean: float, num: int = 40, seed: int = 0) -> list[dict[str, float]]:
    draw = np.random.default_rng(seed)
    return [{"gain": float(gain)} for gain in draw.normal(mean, 0.1, num)]


def build(records: Records, tolerance: float = 0.1) -> ShiftWatch:
    monitor = ShiftMonitor(describe_signs(signs(0.0, 500, seed=1)), tolerance)
    gauge = Gauge("held", "Whether it is held.", registry=CollectorRegistry())
    return ShiftWatch(records, "calibration", monitor, gauge)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift_watch, "_LOOK_S", 0.01)


def test_a_shift_that_no_worker_sees_enough_of_is_found_by_all_of_them_together(
    start_records: StartRecords, caplog: pytest.LogCaptureFixture
) -> None:
    records = start_records()
    watches = [build(records) for _ in range(4)]
    alone = watches[0].monitor.renewed({})

    async def work() -> None:
        for watch in watches:
            for each in signs(0.4, 30):
                watch.note(each)
        await follow(*watches, until=lambda: not any(watch.is_held for watch in watches))

    with caplog.at_level(logging.ERROR):
        asyncio.run(work())
    for each in signs(0.4, 30):
        alone.observe(each)
    assert alone.is_held
    said = [line for line in caplog.messages if "do not look like the calibration rows" in line]
    assert len(said) == len(watches)
    assert watches[0]._gauge._value.get() == 0
    assert {watch.lost_at for watch in watches} == {watches[0].lost_at}
    assert watches[0].lost_at == pytest.approx(time.time(), abs=60)
    # It stays lost for who comes later, and until another calibration or tolerance.
    later, other = build(records), build(records, tolerance=0.3)

    async def look() -> None:
        later.note({"gain": 0.0})
        await later._look()
        await other._look()

    asyncio.run(look())
    assert (later.is_held, other.is_held) == (False, True)
    assert later.monitor.num_requests == watches[0].monitor.num_requests <= 120


def test_familiar_requests_are_counted_and_are_no_shift(start_records: StartRecords) -> None:
    records = start_records()
    watches = [build(records) for _ in range(2)]

    async def work() -> None:
        for place, each in enumerate(signs(0.0, 2000, seed=2)):
            watches[place % 2].note(each)
        await follow(*watches, until=lambda: watches[1].monitor.num_requests == 2000)

    asyncio.run(work())
    assert all(watch.is_held for watch in watches)


def test_a_few_requests_do_not_wait_for_the_next_look(
    start_records: StartRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shift_watch, "_LOOK_S", 3600.0)
    watch = build(start_records())

    async def work() -> None:
        async def arrive() -> None:
            for each in signs(0.4, 200):
                await asyncio.sleep(0.002)
                watch.note(each)

        arriving = asyncio.create_task(arrive())
        await follow(watch, until=lambda: not watch.is_held)
        await arriving

    asyncio.run(work())
    assert watch.monitor.num_requests <= 200


class Failing:
    """Records that cannot be reached, up to a moment."""

    def __init__(self) -> None:
        self.is_gone = True
        self.value: dict[str, Any] = {}

    async def state(self, _: str) -> dict[str, Any]:
        return self.value

    async def change_state(self, _: str, change: Any) -> dict[str, Any]:
        if self.is_gone:
            raise StorageError("gone")
        self.value = change(self.value)
        return self.value


def test_requests_wait_while_the_database_is_gone() -> None:
    records = Failing()
    watch = build(records)  # type: ignore[arg-type]

    async def work() -> None:
        for each in signs(0.0, 5):
            watch.note(each)
        with pytest.raises(StorageError):
            await watch._look()
        watch.note({"gain": 0.1})
        records.is_gone = False
        await follow(watch, until=lambda: watch.monitor.num_requests == 6)

    asyncio.run(work())


def test_a_state_that_is_damaged_is_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    records = Failing()
    records.is_gone, records.value = False, {"logs": "none"}
    watch = build(records)  # type: ignore[arg-type]
    watch.note({"gain": 0.1})
    asyncio.run(watch._look())
    assert watch.monitor.num_requests == 1
    assert "the shift monitor's state is damaged" in caplog.text


@contextmanager
def watched(records: Records, evidence: dict[str, Any], tolerance: float) -> Iterator[Watches]:
    gauges = build_gauges(CollectorRegistry())
    gauges.shift.set(0)
    yield build_watches(records, "c", evidence, ShiftConfig(tolerance=tolerance), gauges)
    assert gauges.shift._value.get() == gauges.floor._value.get() == 1


def test_what_can_be_watched_follows_from_the_calibration(
    start_records: StartRecords, caplog: pytest.LogCaptureFixture
) -> None:
    records = start_records()
    reference = describe_signs(signs(0.0, 100))
    with watched(records, {}, 0.1) as nothing:
        assert nothing == Watches()
        assert nothing.doubt is None
        assert nothing.view() == ()
        nothing.note({"gain": 0.1})
    with watched(records, {"floor": 0.9, "reference": reference}, 1.0) as floor_only:
        assert [view.name for view in floor_only.view()] == ["floor"]
    assert not caplog.messages
    with watched(records, {"floor": 0.9}, 0.1) as old:
        assert old.shift is None
    assert "calibrated by an earlier version" in caplog.text
    with watched(records, {"floor": 0.9, "reference": reference}, 0.1) as both:
        assert [view.name for view in both.view()] == ["floor", "shift"]
        assert both.doubt is None
        assert both.shift is not None
        for each in signs(0.6, 120):
            both.note(each)
        asyncio.run(both.shift._look())
        assert both.doubt == "traffic shifted"
        assert both.floor is not None
        both.floor.monitor.is_held = False
        assert both.doubt == "floor lost"
        both.floor.monitor.is_held = True
        # Put the gauge where the fixture expects it: the alarm had lowered it.
        both.shift._gauge.set(1)
