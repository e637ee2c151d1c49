"""The threshold chosen keeps the floor as often as promised, and no dearer than it must."""

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from moestro.errors import ConfigError, DataError
from moestro.policy.guarantee import (
    GRID,
    Floor,
    Promise,
    calibrate_pair,
    calibrate_path,
    hindsight_pair,
)

Floats = NDArray[np.float64]
COARSE = np.linspace(0.0, 1.0, 21)
ENDLESS = Promise(horizon=math.inf)
# Two standard errors of a share of 0.05 among 300.
TOLERANCE = 0.025


def rows(
    draw: np.random.Generator, num_rows: int, weak: float = 0.5, strong: float = 0.8
) -> tuple[Floats, Floats, Floats]:
    """Signals that say nothing: at threshold t the quality is weak * t + strong * (1 - t)."""
    signal = draw.random(num_rows)
    scores = draw.random((2, num_rows)) < np.array([[weak], [strong]])
    return signal, scores[0].astype(float), scores[1].astype(float)


def test_the_floor_is_broken_no_more_often_than_promised() -> None:
    draw, broken = np.random.default_rng(0), 0
    for _ in range(300):
        found = calibrate_pair(*rows(draw, 120), ENDLESS, COARSE)
        broken += 0.5 * found.threshold + 0.8 * (1 - found.threshold) < 0.95 * 0.8 - 1e-9
    assert broken / 300 <= 0.05 + TOLERANCE


def test_as_many_requests_as_rows_keep_the_floor_of_themselves() -> None:
    draw, broken = np.random.default_rng(1), 0
    for _ in range(300):
        found = calibrate_pair(*rows(draw, 120), Promise(), COARSE)
        signal, weak, strong = rows(draw, 120)
        served = np.where((signal >= found.threshold) | found.is_always_strongest, strong, weak)
        broken += served.mean() < 0.95 * strong.mean()
    assert broken / 300 <= 0.05 + TOLERANCE


def test_a_choice_just_at_the_floor_passes_no_more_often_than_promised() -> None:
    draw, passed = np.random.default_rng(2), 0
    for _ in range(300):
        strong = (draw.random(120) < 0.8).astype(float)
        cheap = strong * (draw.random(120) < 0.95)
        served = np.column_stack([strong, cheap])
        found = calibrate_path(served, np.tile([True, False], (120, 1)), np.arange(2.0), ENDLESS)
        passed += found.index == 1
    assert passed / 300 <= 0.05 + TOLERANCE


def test_a_weak_model_that_does_as_well_gets_all_requests() -> None:
    found = calibrate_pair(*rows(np.random.default_rng(3), 6000, 0.8, 0.8), Promise(), COARSE)
    assert found.strong_share <= 0.05
    assert found.say().startswith("Keeps at least 0.95 of the strongest model's quality with")


def test_a_strong_model_that_is_worse_gets_no_request() -> None:
    found = calibrate_pair(*rows(np.random.default_rng(4), 400, 0.9, 0.5), Promise())
    assert found.threshold > 1.0
    assert found.strong_share == 0.0
    assert found.quality_kept > 1.2


def test_models_that_score_the_same_in_every_row_leave_all_to_the_weak_one() -> None:
    scores = np.ones(200)
    found = calibrate_pair(np.full(200, 0.3), scores, scores, Promise())
    assert found.strong_share == 0.0
    assert found.quality_kept == 1.0


def test_a_floor_of_one_needs_a_weak_model_that_is_better() -> None:
    draw = np.random.default_rng(5)
    same = calibrate_pair(*rows(draw, 300, 0.8, 0.8), Promise(floor=1.0), COARSE)
    better = calibrate_pair(*rows(draw, 3000, 0.95, 0.7), Promise(floor=1.0), COARSE)
    assert same.is_always_strongest
    assert better.strong_share <= 0.05


def test_too_few_rows_stay_with_the_strongest_and_say_how_many_would_do() -> None:
    signal, weak, strong = rows(np.random.default_rng(6), 12)
    found = calibrate_pair(signal, weak, strong, Promise(), COARSE)
    assert found.is_always_strongest
    assert found.strong_share == 1.0
    assert found.num_rows_needed is not None
    assert found.num_rows_needed > 12
    assert f"about {found.num_rows_needed:,} rows like these" in found.say()


def test_the_number_of_rows_said_to_be_needed_mostly_does() -> None:
    passed = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        few = calibrate_pair(*rows(draw, 40, 0.76), Promise(), COARSE)
        if few.num_rows_needed is not None:
            found = calibrate_pair(*rows(draw, few.num_rows_needed, 0.76), Promise(), COARSE)
            passed.append(not found.is_always_strongest)
    assert len(passed) > 10
    assert np.mean(passed) > 0.6


def test_cheap_models_that_are_not_good_enough_are_said_so() -> None:
    strong, weak = np.ones(100), np.zeros(100)
    served = np.column_stack([strong, weak])
    found = calibrate_path(served, served == 1.0, np.arange(2.0), Promise())
    assert found.is_always_strongest
    assert found.num_rows_needed is None
    assert "more rows would not help" in found.say()


def test_a_strongest_model_that_scores_nothing_has_no_quality_to_lose() -> None:
    found = calibrate_pair(np.full(50, 0.5), np.zeros(50), np.zeros(50), Promise())
    assert found.quality_kept == 1.0
    assert found.is_always_strongest


@pytest.mark.parametrize("confidence", [0.5, 0.9999999])
def test_confidence_at_its_ends(confidence: float) -> None:
    found = calibrate_pair(
        *rows(np.random.default_rng(8), 300), Promise(confidence=confidence), COARSE
    )
    assert 0.0 < found.level <= 0.5
    assert math.isfinite(found.p_value)


def test_more_confidence_never_costs_fewer_strong_calls() -> None:
    data = rows(np.random.default_rng(9), 2000, 0.7)
    shares = [
        calibrate_pair(*data, Promise(confidence=c, horizon=math.inf), COARSE).strong_share
        for c in (0.5, 0.8, 0.95, 0.999)
    ]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_a_shorter_horizon_asks_for_more() -> None:
    levels = [Promise(horizon=h).level(1000) for h in (100, 1000, 1e6, math.inf)]
    assert levels == sorted(levels)
    assert Promise().level(1000) == pytest.approx(levels[1])
    assert levels[-1] == pytest.approx(0.05)


def test_a_pair_is_a_path_of_two_models() -> None:
    signal, weak, strong = rows(np.random.default_rng(10), 500)
    is_strong = signal[:, None] >= COARSE
    is_strong[:, 0] = True
    served = np.where(is_strong, strong[:, None], weak[:, None])
    assert calibrate_path(served, is_strong, COARSE, Promise()) == calibrate_pair(
        signal, weak, strong, Promise(), COARSE
    )


def test_thresholds_that_part_no_rows_change_nothing() -> None:
    signal, weak, strong = rows(np.random.default_rng(11), 300)
    signal = np.round(signal, 1)
    fine = calibrate_pair(signal, weak, strong, Promise(), np.linspace(0.0, 1.0, 301))
    coarse = calibrate_pair(signal, weak, strong, Promise(), np.linspace(0.05, 1.05, 11))
    assert fine.strong_share == coarse.strong_share
    assert fine.p_value == coarse.p_value


def test_the_order_of_rows_sorted_by_subject_is_not_that_of_the_bets() -> None:
    signal, weak, strong = rows(np.random.default_rng(12), 1500, 0.7)
    order = np.argsort(strong - weak, kind="stable")
    sorted_rows = calibrate_pair(signal[order], weak[order], strong[order], Promise(), COARSE)
    assert 0 < sorted_rows.index < len(COARSE) - 1


def test_hindsight_is_the_least_share_that_keeps_the_floor() -> None:
    signal = np.array([0.4, 0.3, 0.2, 0.1])
    weak, strong = np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4)
    assert hindsight_pair(signal, weak, strong, 0.75) == (0.4, 0.25)
    assert hindsight_pair(signal, weak, strong, 1.0) == (0.3, 0.5)
    assert hindsight_pair(signal, strong, strong, 1.0) == (math.inf, 0.0)


def test_the_evidence_is_json() -> None:
    found = calibrate_pair(*rows(np.random.default_rng(13), 300), Promise(), COARSE)
    state = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert state["promise"] == found.say()
    names = [name for name in state if name not in ("promise", "is_always_strongest")]
    assert Floor(**{name: state[name] for name in names}) == found


def test_the_path_begins_with_all_requests_to_the_strongest_and_ends_with_none() -> None:
    assert GRID[0] == -1.0
    assert GRID[-1] > 1.0
    assert np.all(np.diff(GRID) > 0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("floor", 0.0),
        ("floor", 1.1),
        ("floor", math.nan),
        ("confidence", 0.4),
        ("confidence", 1.0),
        ("confidence", math.nan),
        ("horizon", 0.0),
        ("horizon", math.nan),
    ],
)
def test_a_promise_that_means_nothing_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{setting} is .*: give ") as error:
        Promise(**{setting: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("signal", "weak", "strong", "said"),
    [
        ([math.nan, 0.0], [0.0, 0.0], [1.0, 1.0], "signal is nan in row 1: give a finite number"),
        ([0.1, 0.0], [0.0, math.nan], [1.0, 1.0], "weak is nan in row 2: give a score"),
        ([0.1, 0.0], [0.0, 0.0], [1.0, 1.5], "strong is 1.5 in row 2: give a score from 0 to 1"),
        ([0.1, 0.0], [0.0], [1.0, 1.0], r"columns have \[1, 2\] rows"),
        ([], [], [], "there are no rows to calibrate on"),
    ],
)
def test_bad_rows_are_one_line(
    signal: list[float], weak: list[float], strong: list[float], said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        calibrate_pair(np.array(signal), np.array(weak), np.array(strong), Promise())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("served", "is_strong", "grid", "said"),
    [
        (np.ones(3), np.ones(3, bool), np.arange(3.0), "a path has scores of shape"),
        (np.ones((3, 2)), np.ones((3, 1), bool), np.arange(2.0), "choices of shape"),
        (np.ones((3, 2)), np.ones((3, 2), bool), np.arange(3.0), "2 points has 3 thresholds"),
        (np.ones((3, 2)), np.zeros((3, 2), bool), np.arange(2.0), "begin with the strongest"),
        (np.full((3, 2), 2.0), np.ones((3, 2), bool), np.arange(2.0), "served is 2 in row 1"),
    ],
)
def test_bad_paths_are_one_line(
    served: Floats, is_strong: NDArray[np.bool_], grid: Floats, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        calibrate_path(served, is_strong, grid, Promise())
