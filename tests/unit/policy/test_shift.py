"""The watch over what requests look like: quiet within its tolerance, quick beyond it, shared."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moestro.errors import ConfigError, DataError
from moestro.policy.shift import ShiftMonitor, describe_signs

RUNS = 100
Signs = dict[str, float]


def requests(draw: np.random.Generator, num: int, mean: float = 0.1) -> list[Signs]:
    """Two signs that hang together."""
    gains = draw.normal(mean, 0.2, num)
    scores = 0.7 - gains + draw.normal(0, 0.1, num)
    return [{"gain": float(g), "score": float(s)} for g, s in zip(gains, scores, strict=True)]


def mixed(draw: np.random.Generator, num: int, share: float) -> list[Signs]:
    """A share of the requests comes from far away."""
    rows, strange = requests(draw, num), requests(draw, num, 1.5)
    return [
        other if draw.random() < share else row for row, other in zip(rows, strange, strict=True)
    ]


def alarm_after(monitor: ShiftMonitor, seen: Sequence[Mapping[str, float]]) -> float:
    for place, signs in enumerate(seen, 1):
        monitor.observe(signs)
        if not monitor.is_held:
            return place
    return math.inf


def build(draw: np.random.Generator, num_rows: int = 500, **of: Any) -> ShiftMonitor:
    return ShiftMonitor(describe_signs(requests(draw, num_rows)), **of)


@pytest.mark.parametrize("num_rows", [20, 100, 1000])
def test_traffic_like_the_calibration_rows_is_no_shift_even_without_any_tolerance(
    num_rows: int,
) -> None:
    draw = np.random.default_rng(4)
    alarms = [
        alarm_after(build(draw, num_rows, tolerance=0.0), requests(draw, 300)) for _ in range(RUNS)
    ]
    # One in a hundred is stated; three have a chance of 8 % where that is all but exceeded.
    assert np.isfinite(alarms).sum() <= 3


def test_2000_requests_that_differ_by_as_much_as_is_tolerated_are_no_shift() -> None:
    draw = np.random.default_rng(5)
    alarms = [
        alarm_after(build(draw, tolerance=0.2), mixed(draw, 2000, 0.2)) for _ in range(RUNS // 5)
    ]
    assert not np.isfinite(alarms).any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shares=st.lists(st.floats(-0.22, 0.22), min_size=2, max_size=2))
def test_no_bettor_gains_on_average_while_shares_are_within_the_margins(
    shares: list[float],
) -> None:
    # The law that a bet pays at most 1 on average, exactly: over all outcomes of a request whose
    # chances differ from the reference by as much as margin and tolerance allow.
    rows = [{"gain": g} for g in (0.0, 0.1, 0.2, 0.4)] * 50
    monitor = ShiftMonitor(describe_signs(rows), tolerance=0.1)
    assert 0.12 < monitor.margin < 0.13
    chances = np.array([0.25 + shares[0], 0.25 - shares[0], 0.25 - shares[1], 0.25 + shares[1]])
    mean_B = np.zeros(len(monitor._win_B))
    for chance, gain in zip(chances, (0.0, 0.1, 0.2, 0.4), strict=True):
        is_won_B = (np.full(len(mean_B), gain) <= monitor._value_B) ^ monitor._is_above_B
        mean_B += chance * np.where(is_won_B, monitor._win_B, monitor._loss_B)
    assert len(mean_B) > 3
    assert (mean_B <= 1.0 + 1e-9).all()


def test_signs_that_are_one_and_the_same_are_no_surer_evidence_than_one() -> None:
    """Copies of a sign bet alike, so their mean is what one of them has."""
    draw = np.random.default_rng(6)
    rows, seen = requests(draw, 500), requests(draw, 300, 0.6)
    one = ShiftMonitor(describe_signs({"a": row["gain"]} for row in rows))
    two = ShiftMonitor(describe_signs({"a": row["gain"], "b": row["gain"]} for row in rows))
    first = alarm_after(one, [{"a": row["gain"]} for row in seen])
    both = alarm_after(two, [{"a": row["gain"], "b": row["gain"]} for row in seen])
    assert first <= both < 300


@pytest.mark.parametrize("mean", [-0.3, 0.5])
@pytest.mark.parametrize("num_rows", [50, 500])
def test_other_traffic_is_a_shift_within_300_requests(mean: float, num_rows: int) -> None:
    draw = np.random.default_rng(7)
    for _ in range(10):
        assert alarm_after(build(draw, num_rows), requests(draw, 300, mean)) < 300


def test_a_shift_after_a_good_time_is_found_nearly_as_soon() -> None:
    draw = np.random.default_rng(8)
    monitor = build(draw)
    assert alarm_after(monitor, requests(draw, 2000)) == math.inf
    assert alarm_after(monitor, requests(draw, 400, 0.5)) < 300


@pytest.mark.parametrize("num_before", [0, 500])
def test_a_short_run_of_requests_of_one_kind_is_no_shift(num_before: int) -> None:
    draw = np.random.default_rng(12)
    for _ in range(10):
        monitor = build(draw)
        seen = [*requests(draw, num_before), *requests(draw, 1, 0.8) * 30, *requests(draw, 300)]
        assert alarm_after(monitor, seen) == math.inf


def test_signs_that_are_all_the_same_are_no_shift() -> None:
    monitor = ShiftMonitor(describe_signs([{"gain": 0.2}] * 100))
    assert alarm_after(monitor, [{"gain": 0.2}] * 300) == math.inf
    assert monitor.num_requests == 300


def test_a_tolerance_of_all_never_alarms() -> None:
    draw = np.random.default_rng(9)
    assert alarm_after(build(draw, tolerance=1.0), requests(draw, 300, 5.0)) == math.inf


def test_a_shift_that_was_seen_stays_and_its_state_goes_around() -> None:
    draw = np.random.default_rng(10)
    monitor = build(draw)
    fresh = build(np.random.default_rng(10))
    assert fresh.renewed({}).to_dict() == fresh.to_dict()
    for signs in requests(draw, 300, 0.9):
        monitor.observe(signs)
        state = json.loads(json.dumps(monitor.to_dict(), allow_nan=False))
        again = fresh.renewed(state)
        assert again.to_dict() == monitor.to_dict()
    assert not again.is_held
    assert again.evidence >= again.alarm_at == 200
    assert again.num_requests == monitor.num_requests < 300
    assert fresh.is_held
    assert fresh.num_requests == 0


def test_workers_that_share_the_state_see_what_one_would() -> None:
    draw = np.random.default_rng(11)
    one, shared = build(draw), build(np.random.default_rng(11))
    state: dict[str, Any] = {}
    seen = requests(draw, 120, 0.15)
    for start in range(0, 120, 10):
        worker = shared.renewed(state)
        for signs in seen[start : start + 10]:
            one.observe(signs)
            worker.observe(signs)
        state = worker.to_dict()
    assert state == one.to_dict()


@pytest.mark.parametrize("tolerance", [-0.1, 1.1, math.nan])
def test_a_tolerance_out_of_bounds_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"^tolerance is .*: give a share from 0 to 1$"):
        ShiftMonitor(describe_signs([{"gain": 0.0}]), tolerance)


@pytest.mark.parametrize("chance", [0.0, 1.0, math.nan])
def test_a_chance_out_of_bounds_is_refused(chance: float) -> None:
    with pytest.raises(ConfigError, match=r"^false_alarm is "):
        ShiftMonitor(describe_signs([{"gain": 0.0}]), 0.1, chance)


@pytest.mark.parametrize("signs", [{"length": 0.1}, {"gain": math.nan}, {"gain": math.inf}, {}])
def test_signs_that_are_others_or_no_numbers_are_refused_and_not_counted(signs: Signs) -> None:
    monitor = ShiftMonitor(describe_signs([{"gain": 0.0}]))
    with pytest.raises(DataError, match=r"^signs are .*: give"):
        monitor.observe(signs)
    assert monitor.num_requests == 0


@pytest.mark.parametrize("rows", [[], [{"gain": 0.0}, {"score": 0.1}, {"gain": 0.1}]])
def test_rows_that_lack_signs_are_no_reference(rows: list[Signs]) -> None:
    with pytest.raises(DataError, match="give at least one row, and all its signs"):
        describe_signs(rows)


@pytest.mark.parametrize(
    "reference",
    [{}, {"num_rows": 0, "signs": {"gain": [[0, 1]]}}, {"num_rows": 9, "signs": {"gain": [1]}}, 3],
)
def test_a_damaged_reference_is_one_line(reference: Any) -> None:
    with pytest.raises(DataError, match=r"reference is damaged .*: calibrate again$"):
        ShiftMonitor(reference)


@pytest.mark.parametrize("damage", [{"logs": [0.0]}, {"logs": None}, {"num": "x"}, {"num": -1}])
def test_a_damaged_state_is_one_line(damage: dict[str, Any]) -> None:
    monitor = ShiftMonitor(describe_signs([{"gain": 0.0}]))
    with pytest.raises(DataError, match=r"^the shift monitor's state is damaged .*: start anew$"):
        monitor.renewed(monitor.to_dict() | damage)
