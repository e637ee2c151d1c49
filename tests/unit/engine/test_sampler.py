"""Draws follow their distribution, repeat themselves, and depend on nothing but their own row.

Shapes: N rows, V vocabulary.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moestro.api.sampling import Sampling
from moestro.engine.guide import Guide
from moestro.engine.request import TokenScore
from moestro.engine.sampler import Row, draft, pick, score
from moestro.errors import CheckpointError, ConfigError
from tests.unit.engine.picking import GREEDY, Masked, draws, greedy_row, mixed_rows, tokens


def test_a_row_alone_gives_the_same_bits_as_among_forty_others() -> None:
    logits_NV, rows = mixed_rows(42, 4099)
    together = pick(logits_NV, rows)
    drafted = draft(logits_NV, rows)
    scored = score(logits_NV, list(range(42)), 3)
    for i, row in enumerate(rows):
        alone_NV = logits_NV[i : i + 1].clone()
        assert pick(alone_NV, [row]) == [together[i]]
        assert draft(alone_NV, [row]) == [drafted[i]]
        assert score(alone_NV, [i], 3) == [scored[i]]
    assert pick(logits_NV.flip(0), rows[::-1]) == together[::-1]


def test_picking_leaves_logits_and_penalties_as_they_were() -> None:
    logits_NV, rows = mixed_rows(42, 300)
    before_NV = logits_NV.clone()
    first = pick(logits_NV, [replace(row, drafts=(1, 2, 1)) for row in rows])
    assert torch.equal(logits_NV, before_NV)
    assert pick(logits_NV, [replace(row, drafts=(1, 2, 1)) for row in rows]) == first


def test_logits_of_a_narrow_dtype_are_taken() -> None:
    assert tokens(pick(torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16), [greedy_row()])) == [1]


LOGITS_V = [0.0, 2.0, 1.0, -1.0, 1.5, -3.0]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), [0, 1, 2, 3, 4, 5]),
        (Sampling(temperature=0.5), [0, 1, 2, 3, 4, 5]),
        (Sampling(temperature=2.0), [0, 1, 2, 3, 4, 5]),
        (Sampling(top_k=3), [1, 2, 4]),
        (Sampling(top_p=0.8), [1, 2, 4]),
        (Sampling(min_p=0.3), [1, 2, 4]),
        (Sampling(temperature=2.0, top_k=4, top_p=0.85), [1, 2, 4]),
    ],
)
def test_draws_follow_the_tempered_distribution_of_the_kept_tokens(
    sampling: Sampling, kept: list[int]
) -> None:
    num = 4000
    counts = np.bincount(draws(LOGITS_V, sampling, num), minlength=len(LOGITS_V))
    weights = np.zeros(len(LOGITS_V))
    weights[kept] = np.exp(np.array(LOGITS_V)[kept] / sampling.temperature)
    expected = num * weights / weights.sum()
    assert counts[expected == 0].sum() == 0
    chi2 = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = len(kept) - 1
    assert chi2 < freedom + 3.1 * math.sqrt(2 * freedom)


def test_seeds_draw_the_same_distribution_as_positions_do() -> None:
    num = 4000
    rows = [Row(sampling=Sampling(), seed=seed, position=0) for seed in range(num)]
    found = tokens(pick(torch.tensor([LOGITS_V]).repeat(num, 1), rows))
    shares = np.bincount(found, minlength=len(LOGITS_V)) / num
    assert shares == pytest.approx(torch.tensor(LOGITS_V).softmax(0).numpy(), abs=0.025)


def test_a_seed_repeats_its_tokens_and_another_does_not() -> None:
    first, again = draws(LOGITS_V, Sampling(), 50), draws(LOGITS_V, Sampling(), 50)
    assert first == again
    assert first != draws(LOGITS_V, Sampling(), 50, seed=1)


def test_shared_noise_makes_drafts_come_true_more_often() -> None:
    torch.manual_seed(0)
    num = 2000
    target_NV = torch.randn(num, 50) * 2
    guess_NV = target_NV + torch.randn(num, 50) * 0.5
    rows = [Row(sampling=Sampling(), seed=1, position=i) for i in range(num)]
    picked = tokens(pick(target_NV, rows))
    coupled = share_equal(draft(guess_NV, rows), picked)
    independent = share_equal(draft(guess_NV, [replace(row, seed=2) for row in rows]), picked)
    assert coupled > 2.5 * independent
    assert coupled > 0.6


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_p=0.8, temperature=0.7)])
def test_a_draft_from_the_same_logits_is_the_token_picked(sampling: Sampling) -> None:
    logits_NV = mixed_rows(42, 300)[0]
    rows = [Row(sampling=sampling, seed=5, position=i) for i in range(42)]
    assert draft(logits_NV, rows) == tokens(pick(logits_NV, rows))


def test_a_draft_head_with_nan_drafts_some_token() -> None:
    [guess] = draft(torch.full((1, 5), torch.nan), [Row(sampling=Sampling(), seed=0, position=0)])
    assert 0 <= guess < 5


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert tokens(pick(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), [greedy_row()])) == [1]
    assert tokens(pick(torch.zeros(1, 1000), [greedy_row()])) == [0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-20, 1e-6])
def test_tiny_temperatures_are_greedy_and_overflow_nothing(temperature: float) -> None:
    logits = [-3.0e38, 1.0, 1.001, 3.0, 2.999]
    assert draws(logits, Sampling(temperature=temperature), 20) == [3] * 20


def test_top_k_keeps_lower_ids_among_equals() -> None:
    assert set(draws([1.0] * 9, Sampling(top_k=2), 100)) == {0, 1}
    assert set(draws([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], Sampling(top_k=4), 200)) == {0, 1, 3, 4}


@pytest.mark.parametrize("top_k", [9, 10, 10**9])
def test_a_top_k_of_the_vocabulary_or_more_is_off(top_k: int) -> None:
    assert set(draws([1.0] * 9, Sampling(top_k=top_k), 300)) == set(range(9))


def test_top_p_keeps_lower_ids_among_equals_and_at_least_one() -> None:
    assert set(draws([1.0] * 8, Sampling(top_p=0.5), 200)) == {0, 1, 2, 3}
    assert set(draws([1.0] * 8, Sampling(top_p=0.501), 200)) == {0, 1, 2, 3, 4}
    assert set(draws([1.0] * 8, Sampling(top_p=1e-300), 50)) == {0}


def test_top_p_just_below_one_keeps_all_that_counts() -> None:
    below_one = math.nextafter(1, 0)
    assert set(draws([1.0] * 8, Sampling(top_p=below_one), 300)) == set(range(8))


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    # Half of the best two is the best one, while half of all ten would be five.
    assert set(draws([1.0] * 10, Sampling(top_k=2, top_p=0.5), 50)) == {0}


def test_min_p_is_relative_to_the_likeliest_tempered_token() -> None:
    logits = [math.log(share) for share in (0.5, 0.3, 0.15, 0.05)]
    assert set(draws(logits, Sampling(min_p=0.25), 200)) == {0, 1, 2}
    assert set(draws(logits, Sampling(min_p=0.5), 200)) == {0, 1}
    assert set(draws(logits, Sampling(min_p=0.25, temperature=0.5), 200)) == {0, 1}
    assert set(draws([2.0, 2.0, 1.9], Sampling(min_p=1.0), 50)) == {0, 1}


def test_stop_tokens_are_out_of_reach_until_min_tokens() -> None:
    sampling = Sampling(temperature=0, min_tokens=2)
    rows = [
        Row(sampling=sampling, seed=0, position=position, stop_token_ids=frozenset({3, 1}))
        for position in range(4)
    ]
    found = tokens(pick(torch.tensor([[0.0, 2.0, 1.0, 3.0]]).repeat(4, 1), rows))
    assert found == [2, 2, 3, 3]


def test_the_mask_wins_over_any_bias() -> None:
    sampling = Sampling(temperature=0, logit_bias={0: 100.0})
    row = Row(sampling=sampling, seed=0, position=0, guide=Guide(Masked([False, True, True])))
    assert tokens(pick(torch.tensor([[5.0, 1.0, 2.0]]), [row])) == [2]


def test_a_row_without_any_token_gets_an_error_and_disturbs_nobody() -> None:
    nothing = Masked([False] * 4)
    rows = [greedy_row(), replace(greedy_row(), position=7, guide=Guide(nothing)), greedy_row()]
    first, second, third = pick(torch.tensor([[0.0, 1.0, 3.0, 2.0]]).repeat(3, 1), rows)
    assert isinstance(second, ConfigError)
    assert "token 7 of the answer" in str(second)
    assert tokens([first, third]) == [2, 2]


def test_min_tokens_and_a_grammar_that_can_only_stop_are_told_apart_from_damage() -> None:
    row = Row(
        sampling=Sampling(min_tokens=9),
        seed=0,
        position=4,
        stop_token_ids=frozenset({1}),
        guide=Guide(Masked([False, True])),
    )
    [outcome] = pick(torch.zeros(1, 2), [row])
    assert isinstance(outcome, ConfigError)
    assert "min_tokens 9" in str(outcome)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_k=3, top_p=0.5)])
def test_damaged_logits_are_that_rows_error(value: float, sampling: Sampling) -> None:
    logits_NV = torch.zeros(2, 70)
    logits_NV[0, 37 if value != -torch.inf else slice(None)] = value
    row = Row(sampling=sampling, seed=0, position=3)
    damaged, sound = pick(logits_NV, [row, row])
    assert isinstance(damaged, CheckpointError)
    assert "token 3 of the answer are not finite" in str(damaged)
    assert isinstance(sound, TokenScore)
    with pytest.raises(CheckpointError, match="prompt are not finite"):
        score(logits_NV, [0, 0], 0)


def share_equal(first: list[int], second: list[int]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
