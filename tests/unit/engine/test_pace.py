"""Prompts join a step as far as the stall allows, on machines with known costs."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from moestro.engine.pace import Pace

Machine = Callable[[int, int], float]


def machine(num_decode_tokens: int, num_prefill_tokens: int) -> float:
    """Return a step's seconds on a machine with a price for having any prompt at all."""
    return (
        0.020
        + 0.001 * num_decode_tokens
        + (0.004 if num_prefill_tokens else 0)
        + 0.0002 * num_prefill_tokens
    )


@pytest.mark.parametrize("num_decodes", [1, 8, 31])
def test_a_step_with_prompts_takes_at_most_the_stall_and_makes_use_of_it(num_decodes: int) -> None:
    pace = Pace(1.8, 512)
    sizes = run(pace, machine, num_decodes, num_steps=40)
    stalls = [machine(num_decodes, size) / machine(num_decodes, 0) for size in sizes]
    assert max(stalls) <= 1.8
    assert stalls[-1] > 1.6


@pytest.mark.parametrize("num_prompts", [1, 4, 8])
def test_a_queue_longer_than_those_answered_stalls_them_in_that_proportion(
    num_prompts: int,
) -> None:
    pace = Pace(1.8, 512)
    pace.observe(0, 512, machine(0, 512))
    learn(pace, machine, [4], [64])
    size = pace.prefill_tokens(4, num_prompts)
    added = machine(4, size) / machine(4, 0) - 1
    most = 0.8 * max(num_prompts / 4, 1.0)
    assert 0.75 * most < added <= most


def test_the_first_step_and_one_of_32_later_ones_go_without_prompts() -> None:
    sizes = run(Pace(1.8, 512), machine, 4, num_steps=100)
    assert [index for index, size in enumerate(sizes) if not size] == [0, 33, 66, 99]


def test_a_toll_for_any_prompt_at_all_does_not_keep_sizes_at_the_least() -> None:
    def steep(num_decode_tokens: int, num_prefill_tokens: int) -> float:
        return 0.012 + (0.006 if num_prefill_tokens else 0) + 0.00005 * num_prefill_tokens

    pace = Pace(1.8, 512)
    pace.observe(0, 512, steep(0, 512))
    run(pace, steep, 1, num_steps=30)
    assert 48 <= pace.prefill_tokens(1) <= 72


def test_tokens_that_grow_dearer_as_a_prompt_goes_on_keep_the_stall() -> None:
    num_before = 0

    def growing(num_decode_tokens: int, num_prefill_tokens: int) -> float:
        dearer_s = 1e-7 * num_prefill_tokens * num_before
        return machine(num_decode_tokens, num_prefill_tokens) + dearer_s

    pace, stalls = Pace(1.8, 512), []
    learn(pace, machine, [4], [64])
    while num_before < 2048:
        size = pace.prefill_tokens(4)
        stalls.append(growing(4, size) / growing(4, 0))
        pace.observe(4, size, growing(4, size))
        num_before += size
    assert max(stalls) < 1.9
    assert stalls[-1] > 1.7


def test_sizes_are_4_at_least_and_up_to_the_most() -> None:
    generator = random.Random(0)
    pace = Pace(1.5, 200)
    pace.observe(4, 0, 0.01)
    for _ in range(500):
        num_decodes, num_prompt = generator.randint(0, 20), generator.randint(1, 200)
        pace.observe(num_decodes, num_prompt, generator.expovariate(30))
        size = pace.prefill_tokens(generator.randint(1, 40))
        assert 4 <= size <= 200 or size == 0


def test_without_decodes_nobody_is_stalled() -> None:
    assert Pace(1.8, 500).prefill_tokens(0) == 500


def test_a_small_limit_is_kept() -> None:
    pace = Pace(1.8, 8)
    learn(pace, machine, [3], [8])
    assert pace.prefill_tokens(3) == 8


def test_on_a_slow_machine_prompts_still_get_their_least() -> None:
    pace = Pace(1.2, 512)
    run(pace, lambda decodes, prompt: 0.01 + 0.01 * prompt, 4, num_steps=30)
    assert pace.prefill_tokens(4) == 4


def test_where_prompts_cost_nothing_they_get_all() -> None:
    pace = Pace(1.8, 512)
    run(pace, lambda decodes, prompt: 0.01, 4, num_steps=30)
    assert pace.prefill_tokens(4) == 512


def test_a_few_steps_that_were_held_up_change_nothing() -> None:
    pace = Pace(1.8, 512)
    learn(pace, machine, [4], [64])
    before = pace.prefill_tokens(4)
    for _ in range(2):
        pace.observe(4, 64, 5.0)
        pace.observe(4, 0, 5.0)
    assert pace.prefill_tokens(4) == before


def test_sizes_that_were_never_seen_lie_between_those_that_were() -> None:
    pace = Pace(1.8, 512)
    learn(pace, machine, [4, 24], [64])
    sizes = [pace.prefill_tokens(num_decodes) for num_decodes in (1, 4, 14, 24, 40)]
    assert all(small <= big for small, big in pairwise(sizes))
    assert sizes[1] < sizes[2] < sizes[3] == sizes[4]


def test_a_base_that_has_changed_is_found_out_under_a_steady_load() -> None:
    pace = Pace(1.8, 512)
    run(pace, machine, 4, num_steps=40)
    before = pace.prefill_tokens(4)
    run(pace, lambda decodes, prompt: machine(decodes, prompt) + 0.06, 4, num_steps=150)
    assert pace.prefill_tokens(4) > 3 * before / 2


def test_a_price_that_has_fallen_is_found_out_at_the_least_size() -> None:
    pace = Pace(1.8, 512)
    run(pace, lambda decodes, prompt: 0.024 + 0.01 * prompt, 4, num_steps=20)
    assert pace.prefill_tokens(4) == 4
    run(pace, machine, 4, num_steps=30)
    assert pace.prefill_tokens(4) >= 48


def run(pace: Pace, cost: Machine, num_decodes: int, *, num_steps: int) -> list[int]:
    """Run steps under a long prompt; return how many of its tokens each took."""
    sizes = []
    for _ in range(num_steps):
        sizes.append(pace.prefill_tokens(num_decodes))
        pace.observe(num_decodes, sizes[-1], cost(num_decodes, sizes[-1]))
    return sizes


def learn(pace: Pace, cost: Machine, decodes: list[int], prompts: list[int]) -> None:
    """Show steps of each size, without prompts and with."""
    for num_decodes in decodes:
        for num_prompt in [0, *prompts] * 9:
            pace.observe(num_decodes, num_prompt, cost(num_decodes, num_prompt))
