"""Guesses save masks, change no token, and are given up where they go wrong.

Shapes: N rows, V vocabulary.
"""

from dataclasses import replace

import torch

from moestro.api.sampling import Sampling
from moestro.engine.guide import Guide
from moestro.engine.sampler import Row, pick
from moestro.errors import DataError
from tests.unit.engine.picking import GREEDY, Masked, tokens

V = 50


def pick_in_turn(sampling: Sampling, allowed: list[bool], num: int) -> tuple[list[int], int]:
    """Pick a token at each of some places of one answer; return them and how many masks it took."""
    rules = Masked(allowed)
    guide = Guide(rules)
    generator = torch.Generator().manual_seed(0)
    found = []
    for position in range(num):
        row = Row(sampling=sampling, seed=3, position=position, guide=guide)
        found += tokens(pick(torch.randn(1, V, generator=generator), [row]))
    return found, rules.num_masks


def test_a_model_that_wants_what_may_come_needs_no_mask() -> None:
    for sampling in (GREEDY, Sampling()):
        assert pick_in_turn(sampling, [True] * V, 40)[1] == 0


def test_where_tokens_are_cut_off_before_a_draw_all_masks_are_needed() -> None:
    for sampling in (Sampling(top_k=5), Sampling(top_p=0.9), Sampling(min_p=0.1)):
        assert pick_in_turn(sampling, [True] * V, 40)[1] == 40


def test_a_guess_is_the_token_that_the_mask_would_have_given() -> None:
    allowed = [token_id % 5 > 0 for token_id in range(V)]
    for sampling in (GREEDY, Sampling(), Sampling(temperature=1.7)):
        found, num_masks = pick_in_turn(sampling, allowed, 200)
        assert 20 < num_masks < 200
        assert all(allowed[token_id] for token_id in found)
        # With a cut that cuts nothing off, every token comes from a mask.
        wide = replace(sampling, top_k=V) if sampling.temperature else sampling
        if sampling.temperature:
            assert pick_in_turn(wide, allowed, 200) == (found, 200)


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
