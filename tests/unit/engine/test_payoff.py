"""Drafting goes on where it makes answers faster, and only there."""

import random
from collections.abc import Callable

import pytest

from moestro.engine.payoff import Payoff

Speed = Callable[[bool], tuple[int, float]]


@pytest.mark.parametrize(("mode", "is_drafting"), [("always", True), ("off", False)])
def test_a_fixed_mode_is_kept_whatever_it_costs(mode: str, is_drafting: bool) -> None:
    payoff = Payoff(mode)
    for drafting in (True, False):
        for _ in range(50):
            payoff.observe(1, drafting, 1, 9.0 if drafting == is_drafting else 0.001)
    assert payoff.is_drafting(1) is is_drafting


@pytest.mark.parametrize(("acceptance", "is_better"), [(0.9, True), (0.1, False)])
def test_after_a_short_trial_the_faster_mode_is_used(acceptance: float, is_better: bool) -> None:
    payoff = Payoff("auto")
    modes = run(payoff, 1, drafts_cost_a_third(acceptance), num_steps=24 + 3200)
    assert modes[:24].count(True) == 12
    assert modes[24:].count(is_better) / 3200 >= 0.96


def test_the_other_mode_is_probed_so_that_a_change_is_found_out() -> None:
    payoff = Payoff("auto")
    run(payoff, 1, drafts_cost_a_third(0.05), num_steps=1000)
    modes = run(payoff, 1, drafts_cost_a_third(0.95), num_steps=3200)
    assert modes[-640:].count(True) / 640 >= 0.96


def test_batch_sizes_are_judged_apart() -> None:
    payoff = Payoff("auto")
    for _ in range(200):
        run(payoff, 1, drafts_cost_a_third(0.95), num_steps=1)
        run(payoff, 16, drafts_cost_a_third(0.05), num_steps=1)
    assert payoff.is_drafting(1)
    assert not payoff.is_drafting(16)
    assert not payoff.is_drafting(31)


def test_where_drafts_have_lost_by_far_other_batch_sizes_try_them_late() -> None:
    payoff = Payoff("auto")
    run(payoff, 1, lambda drafting: (2, 0.010) if drafting else (1, 0.001), num_steps=24)
    modes = run(payoff, 16, drafts_cost_a_third(0.95), num_steps=320 + 640)
    assert not any(modes[:308])
    assert all(modes[308:320])
    # They pay here, as it turns out.
    assert modes[320:].count(True) / 640 >= 0.96


def test_where_drafts_have_lost_by_little_other_batch_sizes_try_them_at_once() -> None:
    payoff = Payoff("auto")
    run(payoff, 1, lambda drafting: (2, 0.022) if drafting else (1, 0.010), num_steps=24)
    assert payoff.is_drafting(16)


def test_steps_that_were_held_up_do_not_turn_the_judgment() -> None:
    payoff = Payoff("auto")
    run(payoff, 1, lambda drafting: (2, 0.013) if drafting else (1, 0.010), num_steps=200)
    payoff.observe(1, True, 2, 30.0)
    assert payoff.is_drafting(1)


def drafts_cost_a_third(acceptance: float) -> Speed:
    generator = random.Random(0)

    def speed(is_drafting: bool) -> tuple[int, float]:
        seconds = 0.010 * generator.uniform(0.8, 1.2)
        if not is_drafting:
            return 1, seconds
        return 1 + (generator.random() < acceptance), seconds * 4 / 3

    return speed


def run(payoff: Payoff, num_sequences: int, speed: Speed, *, num_steps: int) -> list[bool]:
    """Run steps as the judgment has it; return whether each of them drafted."""
    modes = []
    for _ in range(num_steps):
        modes.append(payoff.is_drafting(num_sequences))
        num_tokens, seconds = speed(modes[-1])
        payoff.observe(num_sequences, modes[-1], num_tokens * num_sequences, seconds)
    return modes
