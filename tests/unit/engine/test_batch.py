"""A step that goes on in place is laid out as if it were the first."""

import random
from typing import Any

import torch

from moestro.engine.batch import Batch, Layout
from moestro.engine.request import Sequence, Work
from tests.unit.engine.sequences import build_sequence

SIZE = 4
CPU = torch.device("cpu")


def build_layout() -> Layout:
    return Layout(block_size=SIZE, scratch_slot=999, row_multiple=4, most_experts=4)


def work(sequence: Sequence, num_tokens: int = 1) -> Work:
    """Have the last tokens computed, with blocks of ids that nobody else has."""
    end = len(sequence.tokens) + len(sequence.drafts)
    while len(sequence.blocks) * SIZE < end:
        sequence.blocks.append(random.randrange(100))
    return Work(sequence=sequence, start=end - num_tokens, end=end)


def grow(sequence: Sequence, generator: random.Random) -> None:
    sequence.tokens.append(generator.randrange(50))


def facts(batch: Batch) -> dict[str, Any]:
    """Return what the model reads of a batch: the same for any order of sequences and any room."""
    rows = {}
    for index, each in enumerate(batch.works):
        start, num, table = batch.sequences_S3[index].tolist()
        own = slice(start, start + num)
        num_blocks = -(-each.end // SIZE)
        rows[id(each.sequence)] = (
            batch.tokens_T[own].tolist(),
            batch.positions_T[own].tolist(),
            batch.slots_T[own].tolist(),
            batch.tables[table : table + num_blocks].tolist(),
            None if batch.budget_T is None else batch.budget_T[own].tolist(),
        )
        assert batch.starts[index] == start
    filled = batch.slots_T[batch.num_tokens :].tolist()
    return {"rows": rows, "filled": filled, "num_tokens": batch.num_tokens}


def test_steps_in_place_equal_steps_laid_out_anew() -> None:
    generator = random.Random(0)
    layout, sequences = (
        build_layout(),
        [build_sequence([1] * 3), build_sequence([2] * 9, experts=2.5)],
    )
    num_in_place, last = 0, None
    for step in range(400):
        chance = generator.random()
        if chance < 0.02 and len(sequences) < 6:
            sequences.insert(generator.randrange(3), build_sequence([3] * generator.randint(1, 20)))
        elif chance < 0.04 and len(sequences) > 1:
            sequences.pop()
        elif chance < 0.06:
            # Preempted and admitted again: other blocks for the same tokens.
            sequences[0].blocks = []
        for sequence in sequences:
            sequence.drafts = [1] if step % 50 == 20 else []
            grow(sequence, generator)
        works = [work(sequence, 1 + len(sequence.drafts)) for sequence in sequences]
        batch = layout.gather(works)
        assert facts(batch) == facts(build_layout().gather(works))
        num_in_place += batch is last
        last = batch
    assert 200 < num_in_place < 390


def test_a_step_behind_a_burst_equals_one_laid_out_anew() -> None:
    generator = random.Random(1)
    layout, sequences = build_layout(), [build_sequence([1] * 3), build_sequence([2] * 9)]
    num_in_place, last = 0, None
    for _ in range(200):
        planned = generator.randint(1, 7)
        for sequence in sequences:
            grow(sequence, generator)
        works = [work(sequence) for sequence in sequences]
        for each in works:
            while len(each.sequence.blocks) * SIZE < each.start + planned:
                each.sequence.blocks.append(generator.randrange(100))
            each.repeat(planned)
        batch = layout.gather(works)
        assert facts(batch) == facts(build_layout().gather(works))
        num_in_place += batch is last
        last, num_run = batch, generator.randint(1, planned)
        # What the native loop does to the tensors.
        for row, each in enumerate(batch.works):
            position = each.start + num_run - 1
            batch.positions_T[row] = position
            batch.slots_T[row] = each.sequence.blocks[position // SIZE] * SIZE + position % SIZE
        for each in works:
            each.repeat(num_run)
            for _ in range(num_run - 1):
                grow(each.sequence, generator)
    assert 80 < num_in_place < 190


def test_groups_follow_a_step_that_goes_on() -> None:
    layout, sequence = build_layout(), build_sequence([1] * 7)
    before = layout.gather([work(sequence)])
    assert before.groups(CPU)[0].lengths_GS.tolist() == [[7]]
    sequence.tokens.append(1)
    after = layout.gather([work(sequence)])
    assert after is before
    assert after.groups(CPU)[0].lengths_GS.tolist() == [[8]]
    assert torch.equal(after.groups(CPU)[0].table_GM[0], torch.tensor(sequence.blocks))
