"""Everyone gets on, in order, within the limits, whatever arrives, leaves or runs out of room.

The paper engine of sequences.py checks limits, accounts, contents and order in every step; random
traffic goes through it in test_traffic.py.
"""

from collections.abc import Callable

import pytest

from moestro.engine.blocks import BlockPool
from moestro.engine.config import EngineConfig
from moestro.engine.request import Sequence, Work
from moestro.errors import ConfigError
from tests.unit.engine.sequences import PaperEngine, expect

SIZE = 4


def test_decodes_go_before_prompts_and_prompts_fill_the_rest() -> None:
    engine = build_engine(max_batch_tokens=8)
    (first,) = engine.submit([1] * 3, max_tokens=9)
    make_answers_long(first)
    engine.step()
    (second,) = engine.submit([2] * 20)
    works = engine.step(max_prefill_tokens=16)
    assert works[0].sequence is first
    assert works[0].is_decode
    assert works[1].sequence is second
    assert sum(work.num_tokens for work in works) == 8


def test_a_prompt_alone_takes_the_whole_step() -> None:
    engine = build_engine(max_batch_tokens=8)
    engine.submit([1] * 20)
    assert [spans(engine.step(max_prefill_tokens=1)) for _ in range(3)] == [
        [(0, 8)],
        [(8, 16)],
        [(16, 20)],
    ]


def test_beside_decodes_prompts_keep_to_their_share() -> None:
    engine = build_engine()
    make_answers_long(*engine.submit([1] * 3, max_tokens=20))
    engine.step()
    (second,) = engine.submit([2] * 20)
    for max_prefill_tokens, num_computed in [(5, 5), (0, 5), (1, 6), (7, 13)]:
        engine.step(max_prefill_tokens)
        assert second.num_computed == num_computed


def test_prompts_get_on_where_drafts_would_fill_the_step() -> None:
    engine = build_engine(max_batch=2, max_batch_tokens=3)
    (first,) = engine.submit([1, 2], max_tokens=30)
    make_answers_long(first)
    engine.step()
    (second,) = engine.submit([2] * 9)
    for num_computed in range(1, 9):
        first.drafts = [5, 5, 5]
        assert len(engine.step()) == 2
        assert second.num_computed == num_computed


def test_drafts_are_cut_to_what_the_answer_may_still_have() -> None:
    engine = build_engine()
    (sequence,) = engine.submit([1, 2], max_tokens=3)
    (work,) = engine.scheduler.schedule(16)
    engine.scheduler.settle(work, [1])
    sequence.drafts = [1, 1, 1]
    assert engine.scheduler.demand() == (4, 0)
    (work,) = engine.scheduler.schedule(16)
    assert sequence.drafts == [1]
    assert (work.start, work.end) == (2, 4)
    assert work.is_decode
    engine.scheduler.settle(work, [3])
    assert (sequence.num_computed, sequence.tokens) == (3, [1, 2, 1, 3])


def test_the_last_token_of_an_answer_gets_no_drafts() -> None:
    engine = build_engine()
    (sequence,) = engine.submit([1, 2], max_tokens=2)
    (work,) = engine.scheduler.schedule(16)
    engine.scheduler.settle(work, [1])
    sequence.drafts = [1]
    (work,) = engine.scheduler.schedule(16)
    assert (work.start, work.end, sequence.drafts) == (2, 3, [])


def test_drafts_have_all_room_while_no_prompt_waits_and_half_of_it_else() -> None:
    engine = build_engine(max_batch=1, max_batch_tokens=5)
    (sequence,) = engine.submit([1, 2], max_tokens=20)
    (work,) = engine.scheduler.schedule(16)
    engine.scheduler.settle(work, [1])
    for is_alone, num_tokens in [(True, 5), (False, 3)]:
        if not is_alone:
            engine.submit([2, 1])
        sequence.drafts = [2] * 9
        (work,) = engine.scheduler.schedule(16)
        assert work.num_tokens == num_tokens
        engine.scheduler.settle(work, [1])


def test_accepted_drafts_count_as_computed() -> None:
    engine = build_engine()
    (sequence,) = engine.submit([1, 2], max_tokens=9)
    (work,) = engine.scheduler.schedule(16)
    engine.scheduler.settle(work, [1])
    sequence.drafts = [3, 2, 1]
    (work,) = engine.scheduler.schedule(16)
    engine.scheduler.settle(work, [3, 2, 2])
    assert sequence.tokens == [1, 2, 1, 3, 2, 2]
    assert sequence.num_computed == 5
    assert sequence.drafts == []


def test_no_more_than_max_batch_run_at_once() -> None:
    engine = build_engine(max_batch=2, num_blocks=40)
    for _ in range(5):
        engine.submit([1, 2, 3])
    engine.step()
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (2, 3)
    assert engine.scheduler.num_waiting_tokens == 9
    engine.drain(60)


def test_lower_priority_numbers_go_first_then_earlier_arrivals() -> None:
    engine = build_engine(max_batch=1)
    for priority in (1, 0, 1, -1):
        engine.submit([1, 2], priority=priority, max_tokens=1)
    engine.drain(20)
    assert [each.arrival for each in engine.ended] == [4, 2, 1, 3]


def test_many_answers_to_one_client_keep_nobody_waiting_for_all_of_them() -> None:
    engine = build_engine(max_batch=2)
    many = engine.submit([1, 2], num_choices=8, max_tokens=1)
    engine.step()
    (one,) = engine.submit([3, 1], max_tokens=1)
    engine.drain(60)
    assert engine.ended.index(one) <= 3
    assert len(engine.ended) == len(many) + 1


def test_some_places_are_for_first_answers_only() -> None:
    engine = build_engine(num_blocks=200, max_batch=16)
    many = engine.submit([1, 2], num_choices=40, max_tokens=30)
    make_answers_long(*many)
    for _ in range(3):
        engine.step()
    assert sum(bool(each.blocks) for each in many) == 1 + 14
    (one,) = engine.submit([3, 1], max_tokens=9)
    engine.step()
    assert one.has_started
    engine.drain(200)


def test_a_prompt_under_way_makes_way_for_a_better_priority() -> None:
    engine = build_engine(max_batch_tokens=8)
    engine.submit([1] * 30, priority=1)
    engine.step()
    (urgent,) = engine.submit([2] * 6, priority=0)
    assert engine.step()[0].sequence is urgent


def test_a_big_old_request_is_not_overtaken_by_small_ones() -> None:
    engine = build_engine(num_blocks=10)
    make_answers_long(*engine.submit([1] * 8, max_tokens=20))
    engine.step()
    (big,) = engine.submit([2] * 33, max_tokens=1)
    for _ in range(100):
        if big.is_finished:
            break
        engine.submit([1], max_tokens=1)
        engine.step()
    assert engine.ended.index(big) == 1
    engine.drain(200)


def test_when_blocks_run_out_the_latest_of_the_worst_priority_gives_way() -> None:
    engine = build_engine(num_blocks=8)
    (keeper,) = engine.submit([1] * 4, max_tokens=26, priority=1)
    (latest,) = engine.submit([1] * 4, max_tokens=26, priority=1)
    (urgent,) = engine.submit([2] * 4, max_tokens=12, priority=0)
    make_answers_long(keeper, latest, urgent)
    while not engine.scheduler.num_preemptions:
        engine.step()
    assert engine.scheduler.num_preemptions == 1
    assert not latest.blocks
    assert keeper.blocks
    assert urgent.blocks
    engine.drain(100)


def test_a_preempted_answer_resumes_from_its_cached_blocks_and_ends_the_same() -> None:
    levels = iter([4.0, 3.5, 3.0])

    def grant(sequence: Sequence) -> None:
        sequence.experts = next(levels)

    engine = build_engine(grant, num_blocks=7)
    pair = [engine.submit([token] * 7, max_tokens=12)[0] for token in (1, 2)]
    for sequence, level in zip(pair, (4.0, 3.5), strict=True):
        sequence.experts = level
        make_answers_long(sequence)
    while not engine.scheduler.num_preemptions:
        engine.step()
    _, victim = pair
    assert victim.num_generated > 0
    assert victim.num_computed == 0
    while not victim.blocks:
        engine.step()
    assert victim.num_computed > 0
    assert victim.num_cached == 0
    engine.drain(60)
    assert [each.tokens for each in pair] == [expect(each) for each in pair]
    assert [each.experts for each in pair] == [4.0, 3.5]


def test_drafts_give_way_before_anyone_is_preempted() -> None:
    engine = build_engine(num_blocks=4)
    first, second = (engine.submit([token] * 3, max_tokens=5)[0] for token in (1, 2))
    for work in engine.scheduler.schedule(16):
        engine.scheduler.settle(work, [1])
    for _ in range(2):
        first.drafts, second.drafts = [1, 1, 1], [2, 2, 2]
        works = engine.scheduler.schedule(16)
        assert [work.sequence for work in works] == [first, second]
        for work in works:
            engine.scheduler.settle(work, [1])
    assert engine.scheduler.num_preemptions == 0


def test_choices_wait_for_the_prompt_of_the_first_and_share_it() -> None:
    engine = build_engine(max_batch_tokens=8, num_blocks=20)
    leader, *followers = engine.submit([1] * 14, num_choices=3)
    engine.step()
    assert leader.num_computed == 8
    assert engine.scheduler.num_waiting == 2
    assert engine.scheduler.num_waiting_tokens == 0
    engine.step()
    engine.step()
    assert [each.num_cached for each in followers] == [12, 12]
    engine.drain(20)
    assert len({tuple(each.tokens) for each in engine.ended}) > 1


def test_a_choice_that_is_ended_before_its_leader_has_run_is_not_run() -> None:
    engine = build_engine()
    leader, first, second = engine.submit([1] * 6, num_choices=3)
    assert not engine.scheduler.finish(first)
    engine.live.remove(first)
    assert engine.scheduler.num_waiting == 2
    engine.drain(20)
    assert leader.is_finished
    assert second.is_finished
    assert not first.has_started


def test_choices_of_a_leader_that_ended_are_not_forgotten() -> None:
    engine = build_engine()
    leader, follower = engine.submit([1] * 6, num_choices=2, max_tokens=1)
    engine.step()
    assert leader.is_finished
    assert engine.scheduler.has_work
    engine.drain(3)
    assert follower.is_finished


def test_a_granted_budget_is_kept_for_life_and_shared_by_all_choices() -> None:
    levels = iter([3.0, 2.5, 2.0])

    def grant(sequence: Sequence) -> None:
        sequence.experts = next(levels)

    engine = build_engine(grant, num_blocks=20)
    choices = engine.submit([1] * 6, num_choices=2, max_tokens=2, experts="auto")
    engine.drain(10)
    assert [each.experts for each in choices] == [3.0, 3.0]
    (later,) = engine.submit([1] * 6, experts="auto")
    engine.step()
    assert later.experts == 2.5
    assert later.num_cached == 0


def test_a_budget_that_changes_while_waiting_shares_by_the_last() -> None:
    level = 3.0

    def grant(sequence: Sequence) -> None:
        sequence.experts = level

    engine = build_engine(grant, num_blocks=6)
    engine.submit([1] * 9, max_tokens=1)
    engine.drain(1)
    (blocker,) = engine.submit([2] * 13, max_tokens=4)
    engine.step()
    (waiting,) = engine.submit([1] * 9, max_tokens=1)
    engine.step()
    assert not waiting.blocks
    level = 2.0
    engine.abort(blocker.request.id)
    engine.step()
    assert waiting.experts == 2.0
    assert waiting.num_cached == 0


def test_an_abort_frees_every_block_wherever_the_choices_are() -> None:
    engine = build_engine(max_batch=1)
    running, _ = engine.submit([1] * 20, num_choices=2)
    waiting, _ = engine.submit([2] * 20, num_choices=2)
    engine.step(1)
    engine.abort(running.request.id)
    assert engine.pool.usage == 0
    assert engine.scheduler.num_waiting == 2
    engine.abort(waiting.request.id)
    assert not engine.scheduler.has_work
    assert engine.scheduler.schedule(16) == []


def test_an_abort_of_an_unknown_request_is_ignored() -> None:
    engine = build_engine()
    engine.abort("never seen")
    engine.submit([1, 2])
    engine.drain(9)
    engine.abort("r1")
    assert not engine.scheduler.has_work


def test_a_prompt_without_an_answer_is_computed_and_ends() -> None:
    engine = build_engine()
    (sequence,) = engine.submit([1] * 9, max_tokens=0, scores_prompt=True)
    assert spans(engine.step()) == [(0, 9)]
    assert sequence.is_finished


def test_a_request_that_fills_the_cache_runs_and_a_bigger_one_is_refused() -> None:
    engine = build_engine(num_blocks=4)
    (sequence,) = engine.submit([1] * 9, max_tokens=8)
    make_answers_long(sequence)
    engine.drain(30)
    assert sequence.num_generated == 8
    with pytest.raises(ConfigError, match=r"need 17 tokens of cache, which has 16: .*max_tokens"):
        engine.submit([1] * 9, max_tokens=9)
    assert not engine.scheduler.has_work


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_prompt_that_fills_the_cache_needs_no_place_for_its_answer(max_tokens: int) -> None:
    engine = build_engine(num_blocks=4)
    engine.submit([1] * 16, max_tokens=max_tokens, scores_prompt=True)
    engine.drain(3)
    with pytest.raises(ConfigError, match="need 17 tokens of cache"):
        engine.submit([1] * 17, max_tokens=max_tokens)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="no tokens"):
        build_engine().submit([])


def build_engine(
    grant: Callable[[Sequence], None] = lambda sequence: None,
    *,
    num_blocks: int = 24,
    max_batch: int = 4,
    max_batch_tokens: int = 64,
) -> PaperEngine:
    config = EngineConfig(max_batch=max_batch, max_batch_tokens=max_batch_tokens)
    return PaperEngine(config, BlockPool(num_blocks, SIZE), grant)


def make_answers_long(*sequences: Sequence) -> None:
    """Choose seeds with which no stop token cuts the answers short."""
    for sequence in sequences:
        while len(expect(sequence)) < sequence.num_prompt + sequence.request.max_tokens:
            sequence.seed += 1


def spans(works: list[Work]) -> list[tuple[int, int]]:
    return [(work.start, work.end) for work in works]
