"""The noise is Gumbel's, has no pattern over seeds, positions and tokens, and needs no state.

Statistics are of fixed seeds, so that they repeat; their limits are passed once in 1,000 or less.
Shapes: K tokens.
"""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from moestro.ops.noise import LEAST, MOST, gumbel, uniform, winner

NUM = 20_000
IDS_K = np.arange(NUM)
# Correlations of independent samples spread by 1 / sqrt(NUM).
MOST_CORRELATION = 3.5 / math.sqrt(NUM)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("position", [0, 1, 100_000])
def test_numbers_are_uniform_over_the_tokens(seed: int, position: int) -> None:
    assert ks_distance(uniform(IDS_K, seed, position)) < 1.95 / math.sqrt(NUM)


def test_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    one, num = np.array([17]), 5000
    by_position_K = np.array([uniform(one, 3, position)[0] for position in range(num)])
    by_seed_K = np.array([uniform(one, seed, 3)[0] for seed in range(num)])
    for sample_K in (by_position_K, by_seed_K):
        assert ks_distance(sample_K) < 1.95 / math.sqrt(num)
        assert abs(np.corrcoef(sample_K[1:], sample_K[:-1])[0, 1]) < 3.5 / math.sqrt(num)


@pytest.mark.parametrize("bit", [0, 1, 5, 20, 40, 51])
def test_every_bit_is_set_half_of_the_time(bit: int) -> None:
    words_K = (uniform(IDS_K, 5, 6) * 2**52).astype(np.int64)
    share = float(((words_K >> bit) & 1).mean())
    assert abs(share - 0.5) < 3.5 * 0.5 / math.sqrt(NUM)


@pytest.mark.parametrize(
    ("seed", "position"), [(8, 4), (6, 4), (7, 5), (7, 3), (4, 7), (7 + 2**32, 4), (-7, 4)]
)
def test_neighboring_seeds_and_positions_have_nothing_in_common(seed: int, position: int) -> None:
    here_K, there_K = uniform(IDS_K, 7, 4), uniform(IDS_K, seed, position)
    assert abs(np.corrcoef(here_K, there_K)[0, 1]) < MOST_CORRELATION
    assert chi2_of_pairs(here_K, there_K) < 255 + 3.1 * math.sqrt(2 * 255)


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 256])
def test_neighboring_tokens_have_nothing_in_common(lag: int) -> None:
    sample_K = uniform(IDS_K, 11, 2)
    assert abs(np.corrcoef(sample_K[lag:], sample_K[:-lag])[0, 1]) < MOST_CORRELATION
    assert chi2_of_pairs(sample_K[lag:], sample_K[:-lag]) < 255 + 3.1 * math.sqrt(2 * 255)


def test_pairs_with_a_pattern_would_be_noticed() -> None:
    sample_K = uniform(IDS_K, 11, 2)
    assert chi2_of_pairs(sample_K, (sample_K + 0.1) % 1) > 1000


def test_noise_follows_gumbels_distribution() -> None:
    noise_K = gumbel(IDS_K, 9, 9)
    assert ks_distance(np.exp(-np.exp(-noise_K))) < 1.95 / math.sqrt(NUM)
    assert float(noise_K.mean()) == pytest.approx(np.euler_gamma, abs=0.03)
    assert float(noise_K.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.03)


def test_noise_is_finite_and_within_its_limits_for_any_id() -> None:
    ids_K = np.concatenate([np.arange(500_000), [2**31, 2**40]])
    noise_K = gumbel(ids_K, 0, 0)
    assert np.isfinite(noise_K).all()
    assert noise_K.min() >= LEAST
    assert noise_K.max() <= MOST


def test_the_limits_are_those_of_the_extreme_numbers() -> None:
    assert pytest.approx(-math.log(53 * math.log(2))) == LEAST
    assert pytest.approx(53 * math.log(2)) == MOST


def test_a_token_has_the_same_noise_alone_in_any_order_and_among_all() -> None:
    all_K = gumbel(IDS_K, 1, 2)
    some_K = np.array([19_999, 3, 0, 777, 12_345])
    assert np.array_equal(gumbel(some_K, 1, 2), all_K[some_K])
    for token_id in some_K:
        assert gumbel(np.array([token_id]), 1, 2)[0] == all_K[token_id]


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 12.0])
def test_the_winner_is_the_argmax_of_logits_and_noise(spread: float) -> None:
    random = np.random.default_rng(4)
    for position in range(200):
        logits_K = (random.normal(size=300) * spread).astype(np.float32)
        ids_K = random.permutation(5000)[:300]
        expected = int((logits_K + gumbel(ids_K, 8, position)).argmax())
        assert winner(logits_K, ids_K, 8, position) == expected


def test_the_winner_has_the_greatest_noise_where_float32_cannot_tell() -> None:
    ids_K = np.arange(500_000)
    logits_K = np.array([-1000], dtype=np.float32)
    for token_id in ids_K[uniform(ids_K, 0, 0).argsort()[:50]]:
        assert winner(logits_K, np.array([token_id]), 0, 0) == 0


def test_a_seed_means_the_same_tokens_in_every_release() -> None:
    expected = [float.fromhex(text) for text in ("0x1.b9d5ef533d9e0p-6", "0x1.4d60967a395ebp-1")]
    assert uniform(np.array([0, 1]), 1, 2).tolist() == expected


def ks_distance(sample_K: NDArray[np.float64]) -> float:
    ranks_K = np.arange(len(sample_K) + 1) / len(sample_K)
    ordered_K = np.sort(sample_K)
    above, below = ranks_K[1:] - ordered_K, ordered_K - ranks_K[:-1]
    return float(max(above.max(), below.max()))


def chi2_of_pairs(first_K: NDArray[np.float64], second_K: NDArray[np.float64]) -> float:
    """Compare how pairs fall into 16 x 16 equal fields; 255 is to be expected."""
    cells_K = (first_K * 16).astype(np.int64) * 16 + (second_K * 16).astype(np.int64)
    expected = len(first_K) / 256
    return float((((np.bincount(cells_K, minlength=256) - expected) ** 2) / expected).sum())
