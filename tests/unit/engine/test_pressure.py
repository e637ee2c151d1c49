"""The granted budget follows the queue in declared steps, and does not flap."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.engine.config import PressureConfig
from moestro.engine.pressure import Pressure

CONFIG = PressureConfig(steps=5, high=0.5, low=0.1, dwell_s=2.0)
LEVELS = (4.0, 3.5, 3.0, 2.5, 2.0)


def test_levels_are_evenly_spaced_from_most_to_fewest() -> None:
    assert build().levels == LEVELS
    assert Pressure(PressureConfig(steps=2), 6, 8).levels == (8, 6)


def test_a_long_queue_lowers_the_level_a_step_per_dwell_down_to_the_fewest() -> None:
    seen = watch(build(), [(t / 2, 10, 4) for t in range(30)])
    assert changes(seen) == [(2.0, 3.5), (4.0, 3.0), (6.0, 2.5), (8.0, 2.0)]


def test_an_empty_queue_raises_it_again() -> None:
    pressure = build()
    watch(pressure, [(t / 2, 10, 4) for t in range(30)])
    seen = watch(pressure, [(15 + t / 2, 0, 4) for t in range(30)])
    assert changes(seen) == [(17.0, 2.5), (19.0, 3.0), (21.0, 3.5), (23.0, 4.0)]


def test_a_queue_between_the_bounds_changes_nothing() -> None:
    pressure = build()
    watch(pressure, [(t / 2, 10, 4) for t in range(6)])
    between = [(3 + t / 2, 3 + t % 8, 20) for t in range(100)]
    assert {level for _, level in watch(pressure, between)} == {3.5}


def test_bursts_that_the_next_steps_take_in_change_nothing() -> None:
    bursts = [(t * 0.5, 8 if t % 4 == 0 else 0, 2) for t in range(100)]
    assert {level for _, level in watch(build(), bursts)} == {4.0}


def test_after_a_pause_the_level_is_back_at_the_most() -> None:
    pressure = build()
    watch(pressure, [(t / 2, 10, 4) for t in range(30)])
    assert pressure.update(15.0, 0, 0) == 2.0
    assert pressure.update(600.0, 1, 0) == 4.0


def test_one_late_look_at_a_long_queue_is_one_step() -> None:
    pressure = build()
    pressure.update(0.0, 10, 4)
    assert pressure.update(60.0, 10, 4) == pressure.level == 3.5


def test_without_a_dwell_each_look_may_be_a_step() -> None:
    pressure = Pressure(PressureConfig(dwell_s=0.0), 2, 4)
    queues = [10, 10, 10, 0, 0, 0]
    levels = [pressure.update(float(t), queue, 1) for t, queue in enumerate(queues)]
    assert levels == [4.0, 3.5, 3.0, 2.5, 3.0, 3.5]


def test_a_low_bound_of_none_waits_for_an_empty_queue() -> None:
    pressure = Pressure(PressureConfig(low=0.0), 2, 4)
    watch(pressure, [(float(t), 10, 4) for t in range(3)])
    assert pressure.level == 3.5
    assert watch(pressure, [(3.0 + t, 1, 20) for t in range(9)])[-1][1] == 3.5
    assert watch(pressure, [(20.0 + t, 0, 20) for t in range(3)])[-1][1] == 4.0


@given(st.lists(st.tuples(st.floats(0.01, 3), st.integers(0, 20), st.integers(0, 8))))
def test_changes_are_a_dwell_apart_and_never_against_the_queue(
    looks: list[tuple[float, int, int]],
) -> None:
    pressure, now_s, queue = build(), 0.0, []
    for pause_s, num_waiting, num_running in looks:
        now_s += pause_s
        queue.append((now_s, num_waiting, num_running))
    seen = watch(pressure, queue)
    assert {level for _, level in seen} <= set(LEVELS)
    times = [time_s for time_s, _ in changes(seen)]
    assert all(later - earlier >= 2.0 - 1e-9 for earlier, later in pairwise(times))
    for (_, before), (_, after), (_, waiting, running) in zip(seen, seen[1:], queue, strict=False):
        assert after >= before or waiting > 0.5 * running
        assert after <= before or waiting < 0.1 * max(running, 1)


@pytest.mark.parametrize("fewest", [2, 4])
def test_the_level_starts_at_the_most(fewest: float) -> None:
    assert Pressure(CONFIG, fewest, 4).level == 4


def build() -> Pressure:
    return Pressure(CONFIG, 2, 4)


def watch(pressure: Pressure, looks: list[tuple[float, int, int]]) -> list[tuple[float, float]]:
    return [(look[0], pressure.update(*look)) for look in looks]


def changes(seen: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [after for before, after in pairwise(seen) if after[1] != before[1]]
