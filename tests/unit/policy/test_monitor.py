"""The watch over the floor keeps quiet while all is well, speaks soon when it is not, and its state
goes around. Next: test_shift.py.
"""

import json
import math
from typing import Any

import numpy as np
import pytest

from moestro.errors import ConfigError, DataError
from moestro.policy.monitor import FloorMonitor

# Two standard errors of the stated chance among the runs made.
RUNS = 120
TOLERANCE = 0.04


def audits(
    draw: np.random.Generator, num: int, strong: float, kept: float
) -> list[tuple[float, float]]:
    """The strongest is right with chance `strong`, the policy with `kept` of that, apart."""
    policy = draw.random(num) < strong * kept
    return list(zip(policy.tolist(), (draw.random(num) < strong).tolist(), strict=True))


def alarm_after(monitor: FloorMonitor, seen: list[tuple[float, float]]) -> float:
    for place, (policy, strongest) in enumerate(seen, 1):
        monitor.observe(policy, strongest)
        if not monitor.is_held:
            return place
    return math.inf


@pytest.mark.parametrize(("strong", "floor"), [(0.8, 0.95), (1.0, 0.95), (0.5, 0.7)])
def test_a_floor_held_exactly_is_doubted_no_more_often_than_stated(
    strong: float, floor: float
) -> None:
    draw = np.random.default_rng(0)
    alarms = [
        alarm_after(FloorMonitor(floor), audits(draw, 300, strong, floor)) for _ in range(RUNS)
    ]
    assert np.isfinite(alarms).mean() <= 0.05 + TOLERANCE


def test_a_clear_drop_is_found_within_300_audits() -> None:
    draw = np.random.default_rng(1)
    delays = [alarm_after(FloorMonitor(0.95), audits(draw, 300, 0.9, 0.6)) for _ in range(60)]
    assert np.isfinite(delays).mean() >= 0.95
    assert np.median(delays) < 100


def test_a_drop_after_a_good_time_is_found_too() -> None:
    draw = np.random.default_rng(2)
    monitor = FloorMonitor(0.95).merge(audits(draw, 1000, 0.9, 1.0))
    assert monitor.is_held
    assert alarm_after(monitor, audits(draw, 300, 0.9, 0.4)) < 150


def test_equal_scores_are_never_evidence() -> None:
    monitor = FloorMonitor(0.95).merge([(1.0, 1.0), (0.0, 0.0)] * 200)
    assert monitor.is_held
    assert monitor.evidence <= 1.0


def test_what_alarmed_stays_and_counts_no_more() -> None:
    monitor = FloorMonitor(1.0).merge([(0.0, 1.0)] * 50)
    seen = monitor.num_audits
    assert not monitor.is_held
    assert monitor.evidence >= 20
    monitor.merge([(1.0, 1.0)] * 500)
    assert not monitor.is_held
    assert monitor.num_audits == seen < 50


def test_workers_that_share_the_state_see_what_one_would() -> None:
    seen = audits(np.random.default_rng(3), 120, 0.9, 0.85)
    one, shared = FloorMonitor(0.95), FloorMonitor(0.95).to_dict()
    for start in range(0, 120, 10):
        one.merge(seen[start : start + 10])
        worker = FloorMonitor.from_dict(json.loads(json.dumps(shared, allow_nan=False)))
        for audit in seen[start : start + 10]:
            worker.observe(*audit)
        shared = worker.to_dict()
    assert shared == one.to_dict()
    assert one.num_audits == 120


def test_a_state_before_anything_was_seen_is_json() -> None:
    monitor = FloorMonitor(0.9)
    again = FloorMonitor.from_dict(json.loads(json.dumps(monitor.to_dict(), allow_nan=False)))
    assert again.to_dict() == monitor.to_dict()
    assert again.evidence == pytest.approx(1.0)


@pytest.mark.parametrize("scores", [(math.nan, 1.0), (1.0, math.nan), (1.1, 1.0), (0.0, -0.1)])
def test_a_score_out_of_bounds_is_one_line_and_not_counted(scores: tuple[float, float]) -> None:
    monitor = FloorMonitor(0.95)
    with pytest.raises(DataError, match=r"score is .*: give a score from 0 to 1$"):
        monitor.observe(*scores)
    assert monitor.num_audits == 0


@pytest.mark.parametrize("floor", [0.0, 1.01, math.nan])
def test_a_floor_out_of_bounds_is_refused(floor: float) -> None:
    with pytest.raises(ConfigError, match=r"^floor is "):
        FloorMonitor(floor)


@pytest.mark.parametrize("chance", [0.0, 1.0, math.nan])
def test_a_chance_out_of_bounds_is_refused(chance: float) -> None:
    with pytest.raises(ConfigError, match=r"^false_alarm is "):
        FloorMonitor(0.9, chance)


@pytest.mark.parametrize(
    "damage",
    [
        {"floor": None},
        {"floor": 2.0},
        {"false_alarm": "often"},
        {"logs": [0.0]},
        {"logs": None},
        {"num": -1},
        {"num": math.inf},
    ],
)
def test_a_damaged_floor_state_is_one_line(damage: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^the floor monitor's state is damaged .*: start anew$"):
        FloorMonitor.from_dict(FloorMonitor(0.9).to_dict() | damage)


def test_a_state_that_lacks_a_part_is_damaged() -> None:
    with pytest.raises(DataError, match="KeyError"):
        FloorMonitor.from_dict({})
