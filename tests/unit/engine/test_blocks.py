"""Blocks are given, shared, kept and taken back, and none is lost or shared wrongly on the way."""

from typing import Any

import pytest

from moestro.engine.blocks import BlockPool
from moestro.engine.request import Sequence
from tests.unit.engine.sequences import build_choices, build_request, build_sequence

SIZE = 4


def test_a_sequence_shares_the_full_blocks_of_an_equal_beginning() -> None:
    pool = BlockPool(8, SIZE)
    first = computed(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = admitted(pool, [1, 2, 3, 4, 5, 6, 7, 8, 0, 0])
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert second.num_computed == second.num_cached == 8
    pool.check([first, second])


def test_what_is_not_computed_yet_is_not_shared() -> None:
    pool = BlockPool(8, SIZE)
    first = admitted(pool, [1] * 9)
    settle(pool, first, 7)
    assert admitted(pool, [1] * 9).num_computed == 4


def test_blocks_are_shared_from_the_start_only() -> None:
    pool = BlockPool(8, SIZE)
    computed(pool, [1, 1, 1, 1, 2, 2, 2, 2])
    assert admitted(pool, [3, 1, 1, 1, 2, 2, 2, 2, 5]).num_computed == 0
    assert admitted(pool, [2, 2, 2, 2, 5]).num_computed == 0


@pytest.mark.parametrize(("num_tokens", "num_shared"), [(7, 4), (8, 4), (9, 8), (12, 8), (13, 12)])
def test_at_least_the_last_token_is_left_to_compute(num_tokens: int, num_shared: int) -> None:
    pool = BlockPool(8, SIZE)
    computed(pool, [1] * 13)
    assert admitted(pool, [1] * num_tokens).num_computed == num_shared


def test_budgets_never_share() -> None:
    pool = BlockPool(24, SIZE)
    for experts in (None, 2.0, 2.5):
        assert admitted(pool, [1] * 9, experts=experts).num_computed == 0
        computed(pool, [1] * 9, experts=experts)
        assert admitted(pool, [1] * 9, experts=experts).num_computed == 8


def test_an_answer_is_shared_with_whoever_goes_on_from_it() -> None:
    pool = BlockPool(8, SIZE)
    first = computed(pool, [1, 2, 3])
    first.tokens += [4, 5, 6]
    assert pool.reserve(first, 6)
    settle(pool, first, 6)
    pool.release(first)
    assert admitted(pool, [1, 2, 3, 4, 5, 6, 7]).num_cached == 4


def test_without_prefix_reuse_nothing_is_shared() -> None:
    pool = BlockPool(8, SIZE, has_prefix_reuse=False)
    pool.release(computed(pool, [1] * 9))
    assert admitted(pool, [1] * 9).num_computed == 0
    assert pool.num_query_tokens == 0


def test_a_prompt_to_be_scored_is_computed_whole() -> None:
    pool = BlockPool(8, SIZE)
    computed(pool, [1] * 9)
    assert admitted(pool, [1] * 9, scores_prompt=True).num_computed == 0


def test_other_choices_share_the_scored_prompt_of_the_first() -> None:
    pool = BlockPool(8, SIZE)
    request = build_request([1] * 9, scores_prompt=True, num_choices=2)
    leader, follower = build_choices(request)
    assert pool.admit(leader, 9)
    settle(pool, leader, 9)
    assert pool.admit(follower, 9)
    assert follower.num_computed == 8


def test_a_scored_prompt_is_not_scored_again_once_its_answer_has_begun() -> None:
    pool = BlockPool(8, SIZE)
    sequence = computed(pool, [1] * 9, scores_prompt=True)
    sequence.tokens.append(2)
    pool.release(sequence)
    assert pool.admit(sequence, 10)
    assert sequence.num_computed == 8


def test_of_equal_blocks_computed_at_once_the_first_is_found() -> None:
    pool = BlockPool(8, SIZE)
    first, second = admitted(pool, [1] * 5), admitted(pool, [1] * 5)
    settle(pool, second, 5)
    settle(pool, first, 5)
    assert admitted(pool, [1] * 5).blocks[0] == second.blocks[0]
    pool.release(first)
    pool.release(second)
    assert pool.num_free == 6


def test_admission_is_all_or_nothing() -> None:
    pool = BlockPool(3, SIZE)
    first = admitted(pool, [1] * 8)
    second = build_sequence([2] * 8)
    assert not pool.admit(second, 8)
    assert second.blocks == []
    assert pool.num_free == 1
    pool.check([first])


def test_a_reusable_block_is_not_counted_as_room_twice() -> None:
    pool = BlockPool(3, SIZE)
    pool.release(computed(pool, [1] * 9))
    first = admitted(pool, [2] * 4)
    sequence = build_sequence([1] * 12)
    assert not pool.admit(sequence, 12)
    pool.check([first])


def test_admission_leaves_the_spare_blocks_free() -> None:
    pool = BlockPool(3, SIZE)
    sequence = build_sequence([1] * 8)
    assert not pool.admit(sequence, 8, spare=2)
    assert pool.admit(sequence, 8, spare=1)


def test_growth_is_all_or_nothing() -> None:
    pool = BlockPool(3, SIZE)
    sequence = admitted(pool, [1] * 4)
    assert not pool.reserve(sequence, 13)
    assert len(sequence.blocks) == 1
    assert pool.reserve(sequence, 12)
    assert pool.reserve(sequence, 12)
    assert len(sequence.blocks) == 3
    assert pool.usage == 1


def test_blocks_that_cannot_be_found_are_used_before_those_that_can() -> None:
    pool = BlockPool(3, SIZE)
    pool.release(computed(pool, [1] * 9))
    pool.release(admitted(pool, [2] * 4))
    assert admitted(pool, [1] * 9).num_cached == 8


def test_what_was_released_longest_ago_goes_first() -> None:
    pool = BlockPool(4, SIZE)
    for token in (1, 2, 3):
        pool.release(computed(pool, [token] * 4))
    pool.release(admitted(pool, [1] * 5))
    pool.release(admitted(pool, [4] * 8))
    assert [num_cached(pool, token) for token in (1, 3, 2)] == [4, 4, 0]


def test_a_beginning_outlives_its_end() -> None:
    pool = BlockPool(3, SIZE)
    pool.release(computed(pool, [1] * 12))
    pool.release(admitted(pool, [2] * 4))
    assert admitted(pool, [1] * 9).num_cached == 8


def test_a_held_block_is_never_evicted() -> None:
    pool = BlockPool(2, SIZE)
    first = computed(pool, [1] * 4)
    second = admitted(pool, [2] * 4)
    assert not pool.admit(build_sequence([3]), 1)
    pool.check([first, second])


def test_hits_and_queries_are_counted_in_tokens_on_first_admission() -> None:
    pool = BlockPool(8, SIZE)
    computed(pool, [1] * 9)
    second = admitted(pool, [1] * 10)
    assert (pool.num_query_tokens, pool.num_hit_tokens) == (19, 8)
    second.has_started = True
    pool.release(second)
    assert pool.admit(second, 10)
    assert (pool.num_query_tokens, pool.num_hit_tokens) == (19, 8)


def test_the_check_notices_a_lost_block() -> None:
    pool = BlockPool(2, SIZE)
    sequence = admitted(pool, [1])
    pool.check([sequence])
    sequence.blocks = []
    with pytest.raises(AssertionError):
        pool.check([sequence])


def admitted(pool: BlockPool, prompt: list[int], **changes: Any) -> Sequence:
    sequence = build_sequence(prompt, **changes)
    assert pool.admit(sequence, len(prompt))
    return sequence


def computed(pool: BlockPool, prompt: list[int], **changes: Any) -> Sequence:
    sequence = admitted(pool, prompt, **changes)
    settle(pool, sequence, len(prompt))
    return sequence


def settle(pool: BlockPool, sequence: Sequence, num_computed: int) -> None:
    start, sequence.num_computed = sequence.num_computed, num_computed
    pool.register(sequence, start)


def num_cached(pool: BlockPool, token: int) -> int:
    probe = admitted(pool, [token] * 5)
    pool.release(probe)
    return probe.num_cached
