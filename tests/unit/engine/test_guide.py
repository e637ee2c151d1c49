"""Guesses save masks, change no token, and are given up where they go wrong.

Shapes: N rows, V vocabulary.
"""

import math
from dataclasses import replace

import pytest
import torch

from moestro.api.sampling import Sampling
from moestro.engine.guide import Guide, survives
from moestro.engine.request import TokenScore
from moestro.engine.sampler import Row, pick
from moestro.errors import DataError
from tests.unit.engine.picking import GREEDY, Masked, tokens

V = 50


class Careful(Guide):
    """A guide that never guesses: what it gives is what the masks give."""

    def can_guess(self, sampling: Sampling) -> bool:
        """Never."""
        return False


def pick_in_turn(
    sampling: Sampling,
    allowed: list[bool],
    num: int,
    scale: float = 1.0,
    kind: type[Guide] = Guide,
) -> tuple[list[int], int]:
    """Pick a token at each of some places of one answer; return them and how many masks it took."""
    rules = Masked(allowed)
    guide = kind(rules)
    generator = torch.Generator().manual_seed(0)
    found = []
    for position in range(num):
        row = Row(sampling=sampling, seed=3, position=position, guide=guide)
        found += tokens(pick(scale * torch.randn(1, V, generator=generator), [row]))
    return found, rules.num_masks


def test_a_model_that_wants_what_may_come_needs_no_mask() -> None:
    for sampling in (GREEDY, Sampling()):
        assert pick_in_turn(sampling, [True] * V, 40)[1] == 0


def test_a_token_that_a_cut_may_have_left_out_takes_a_mask() -> None:
    for sampling in (Sampling(top_k=5), Sampling(top_p=0.9), Sampling(min_p=0.1)):
        assert pick_in_turn(sampling, [True] * V, 40, scale=0)[1] == 40
        assert pick_in_turn(sampling, [True] * V, 40, scale=20)[1] < 10
        hot = replace(sampling, temperature=1.1)
        assert pick_in_turn(hot, [True] * V, 40, scale=20)[1] == 40


CUTS = [
    Sampling(top_p=0.5),
    Sampling(top_p=0.9),
    Sampling(top_p=0.9, temperature=0.6),
    Sampling(top_k=1),
    Sampling(top_k=4, temperature=0.8),
    Sampling(min_p=0.3),
    Sampling(min_p=0.05, temperature=0.3),
    Sampling(top_k=12, top_p=0.8, min_p=0.1, temperature=0.9),
]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(temperature=1.7), *CUTS])
@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("period", [2, 5])
def test_a_guess_is_the_token_that_the_mask_would_have_given(
    sampling: Sampling, scale: float, period: int
) -> None:
    allowed = [token_id % period > 0 for token_id in range(V)]
    found, num_masks = pick_in_turn(sampling, allowed, 200, scale)
    assert (found, 200) == pick_in_turn(sampling, allowed, 200, scale, Careful)
    assert num_masks < 200 or scale == 1
    assert all(allowed[token_id] for token_id in found)


def test_only_what_no_cut_can_leave_out_survives() -> None:
    # Beside the rest as one token, which is the worst that it can meet.
    for share in (0.02, 0.1, 0.3, 0.49, 0.51, 0.9, 0.999, 1.0):
        for sampling in CUTS:
            weights = [share ** (1 / sampling.temperature)]
            weights += [(1 - share) ** (1 / sampling.temperature)] if share < 1 else []
            own = weights[0] / sum(weights)
            is_behind = share < 0.5
            is_lost = is_behind and (
                sampling.top_k == 1 or 1 - own >= sampling.top_p or own < sampling.min_p
            )
            assert not (is_lost and survives(sampling, math.log(share)))
            assert share < 0.9 or survives(sampling, math.log(share))


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.001, 0.01])
def test_at_the_lowest_temperatures_only_the_likeliest_token_survives(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.9)
    assert survives(sampling, math.log(0.6))
    for share in (1e-6, 0.02, 0.4, 0.49):
        assert not survives(sampling, math.log(share))


def test_how_likely_a_guess_is_stays_untold_where_nobody_asks() -> None:
    for sampling in (Sampling(top_p=0.9), Sampling()):
        row = Row(sampling=sampling, seed=3, position=0, guide=Guide(Masked([True] * V)))
        [score] = pick(20 * torch.eye(V)[:1], [row])
        assert score == TokenScore(0, None)


def test_wrong_guesses_are_soon_given_up_but_not_for_good() -> None:
    only = [False] * (V - 1) + [True]
    rules = Masked(only)
    guide = Guide(rules)
    guessed = []
    for position in range(33):
        guessed.append(guide.can_guess(GREEDY))
        row = Row(sampling=GREEDY, seed=0, position=position, guide=guide)
        pick(torch.arange(V, 0, -1.0)[None], [row])
    assert rules.num_masks == 33
    # Now and now, then with one mask between, then with three, then with seven.
    found = [position for position, is_guess in enumerate(guessed) if is_guess]
    assert found == [0, 1, 3, 7, 15, 23, 31]


def test_as_many_are_guessed_at_once_as_were_right_and_a_quarter_behind_a_wrong_one() -> None:
    guide = Guide(Masked([True] * (V - 1) + [False]))
    assert guide.num_guesses(GREEDY) == 0
    for _ in range(40):
        assert guide.offer(0, GREEDY, None)
    assert guide.num_guesses(GREEDY) == 40
    assert not guide.offer(V - 1, GREEDY, None)
    # Where a mask is due nothing is guessed.
    assert guide.num_guesses(GREEDY) == 0
    guide.mask()
    assert guide.num_guesses(GREEDY) == 10
    for left in (2, 0):
        guide.doubt()
        assert guide.num_guesses(GREEDY) == left


class Broken:
    """Rules that fail when asked."""

    def offer(self, token_id: int) -> bool:
        """Fail."""
        raise DataError("too large")

    def mask(self) -> bytes:
        """Fail."""
        raise DataError("too large")


def test_rules_that_fail_are_their_own_rows_error() -> None:
    for sampling in (GREEDY, Sampling(), Sampling(top_p=0.5)):
        sound = Row(sampling=sampling, seed=0, position=0)
        broken = replace(sound, guide=Guide(Broken()))
        first, second = pick(torch.zeros(2, V), [broken, sound])
        assert isinstance(first, DataError)
        assert str(first) == "too large"
        assert len(tokens([second])) == 1
