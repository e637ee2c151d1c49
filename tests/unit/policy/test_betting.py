"""Nobody gets rich on a mean of zero, and who is right gets rich soon."""

import math

import numpy as np
import pytest

from moestro.policy.betting import Fortune, bet

# Three standard errors of a share of 0.05 among 4,000.
TOLERANCE = 0.011


@pytest.mark.parametrize(
    ("values", "chances"),
    [
        ([-1.0, 1.0], [0.5, 0.5]),
        ([-0.95, 0.05], [0.05, 0.95]),
        ([0.05, -0.95, 1.0, 0.0], [0.57, 0.13, 0.095, 0.205]),
    ],
    ids=["coin", "rare losses", "paired scores"],
)
@pytest.mark.parametrize("num_rows", [20, 200])
def test_a_mean_of_zero_is_rejected_no_more_often_than_stated(
    values: list[float], chances: list[float], num_rows: int
) -> None:
    assert np.dot(values, chances) == pytest.approx(0.0)
    rows = np.random.default_rng(0).choice(values, size=(num_rows, 4000), p=chances)
    for level in (0.05, 0.01):
        assert (bet(rows, 1.0, level) <= level).mean() <= level + TOLERANCE


def test_a_clear_gain_is_found_and_a_clear_loss_never() -> None:
    draw = np.random.default_rng(1)
    gains = draw.choice([-1.0, 1.0], size=(300, 200), p=[0.35, 0.65])
    assert (bet(gains, 1.0, 0.05) <= 0.05).mean() > 0.98
    assert (bet(-gains, 1.0, 0.05) <= 0.05).mean() == 0.0


def test_a_mean_five_standard_errors_above_zero_is_hardly_ever_missed() -> None:
    # Paired scores with rare losses: a bettor who only aims at the last row misses one in thirteen.
    values, chances = np.array([0.05, -0.95, 1.0, 0.0]), np.array([0.69, 0.05, 0.05, 0.21])
    mean, num_rows = float(values @ chances), 1500
    errors = mean / math.sqrt((values**2 @ chances - mean**2) / num_rows)
    assert errors == pytest.approx(4.64, abs=0.01)
    rows = np.random.default_rng(3).choice(values, size=(num_rows, 1000), p=chances)
    assert (bet(rows, 0.95, 0.01) <= 0.01).mean() > 0.97


def test_columns_do_not_touch_each_other() -> None:
    rows = np.random.default_rng(2).choice([-1.0, 1.0], size=(120, 30), p=[0.4, 0.6])
    alone = np.concatenate([bet(rows[:, [column]], 1.0, 0.05) for column in range(30)])
    together = bet(rows, 1.0, 0.05)
    assert np.allclose(alone, together)
    assert 0 < (together <= 0.05).sum() < 30


def test_numbers_that_are_all_zero_say_nothing() -> None:
    assert bet(np.zeros((50, 2)), 1.0, 0.05).tolist() == [1.0, 1.0]


def test_the_worst_row_ruins_nobody() -> None:
    rows = np.full((50, 1), 1.0)
    rows[1] = -1.0
    found = bet(rows, 1.0, 1e-6)
    assert 0.0 < found[0] < 1.0


def test_a_fortune_starts_with_one_coin_and_keeps_it_at_even_odds() -> None:
    fortune = Fortune(3)
    assert fortune.log_wealth == pytest.approx(0.0)
    for _ in range(20):
        fortune.play([1.0, 1.0, 1.0])
    assert fortune.log_wealth == pytest.approx(0.0, abs=1e-12)


def test_a_fortune_at_fair_odds_is_one_coin_on_average() -> None:
    # All 2^8 courses of a fair coin, weighed alike.
    wealth = []
    for course in range(256):
        fortune = Fortune(2)
        for row in range(8):
            side = 1.0 if course >> row & 1 else -1.0
            fortune.play([1.0 + 0.3 * side, 1.0 + 0.7 * side])
        wealth.append(math.exp(fortune.log_wealth))
    assert np.mean(wealth) == pytest.approx(1.0)


def test_a_change_after_a_long_good_time_is_seen_nearly_as_soon() -> None:
    def delay(num_good: int) -> int:
        fortune = Fortune(1)
        for _ in range(num_good):
            fortune.play([0.7])
        rows = 0
        while fortune.log_wealth < math.log(20):
            fortune.play([1.3])
            rows += 1
        return rows

    assert delay(0) < 20
    assert delay(2000) < 80


def test_each_bettor_is_told_what_a_row_made() -> None:
    with pytest.raises(ValueError, match="1 factors for 2 bettors"):
        Fortune(2).play([1.0])
