"""RouteLLM's figures: worked by hand, and against plain slow code."""

import numpy as np
import pytest

from moestro.policy.measures import Ranking, figure, measure_means, measure_pair, paired_p

WEAK = np.array([0.0, 1.0, 0.0, 1.0])
STRONG = np.array([1.0, 1.0, 1.0, 0.0])


def test_a_small_case_worked_by_hand() -> None:
    curve = Ranking(np.array([4.0, 3.0, 2.0, 1.0]), WEAK, STRONG).curve()
    assert curve.scores.tolist() == [0.5, 0.75, 0.75, 1.0, 0.75]
    # PGR is 0, 1, 1, 2, 1: its area over quarters is (0.5 + 1 + 1.5 + 1.5) / 4.
    assert curve.apgr() == pytest.approx(1.125)
    assert curve.share_for_gap(0.5) == pytest.approx(0.125)
    assert curve.share_for_quality(0.95) == pytest.approx(0.25 * 0.85)


def test_random_has_an_area_of_one_half_exactly() -> None:
    figures = measure_pair(np.zeros(4), WEAK, STRONG)
    assert figures["apgr"].value == 0.5
    assert figures["cpt80"].value == pytest.approx(0.8)


def test_equal_signals_count_as_shuffled() -> None:
    draw = np.random.default_rng(0)
    weak, strong = draw.integers(0, 2, (2, 300)).astype(float)
    strong[:60] = 1.0
    signal = draw.integers(0, 5, 300).astype(float)
    areas = []
    for _ in range(400):
        order = np.lexsort((draw.random(300), -signal))
        gains = np.cumsum((strong - weak)[order]) / (strong - weak).sum()
        areas.append(np.trapezoid(np.r_[0, gains], dx=1 / 300))
    assert measure_pair(signal, weak, strong)["apgr"].value == pytest.approx(
        np.mean(areas), abs=0.02
    )


def test_no_gap_has_no_figures() -> None:
    figures = measure_pair(np.arange(4.0), STRONG, STRONG)
    assert figures["apgr"].value is None
    assert figures["cpt50"].value is None
    assert figures["strong_share_at_95"].value == 0.0


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for seed in range(60):
        found = measure_means(draw.random((80, 1)), seed)[0]
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.5 <= found.high
    assert held >= 51


def test_a_paired_test_tells_a_difference_from_none() -> None:
    draw = np.random.default_rng(2)
    first = draw.integers(0, 2, 400).astype(float)
    assert paired_p(first, first) == 1.0
    assert paired_p(np.maximum(first, draw.random(400) < 0.1), first) < 0.001


def test_a_value_without_resamples_has_no_interval() -> None:
    assert figure([0.5, float("nan")]).low is None
