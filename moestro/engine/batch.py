"""One step's work -> tensors: a flat batch of tokens, and where their latents go and come from.

Most steps add a token to each sequence of the step before: they change its tensors in place. A
burst does so natively, step after step, and leaves them as its last step had them.
Sequences with equally many new tokens and about equally many blocks form a group, so that torch
attends in a few operations, not in a few per sequence. Next: pages.py, runner.py.

Shapes: T tokens of the batch, G sequences of a group, S tokens of each, M blocks of each.
"""

from collections import abc
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moestro.engine.request import Work
from moestro.ops.paged import Group
from moestro.ops.rows import round_up

# More tokens than this form a group of their own: a prompt's chunk.
_MOST_SHARED_TOKENS = 8
# Each sequence may grow by so many blocks before its step is laid out anew.
_SPARE_BLOCKS = 16

Numbers = NDArray[np.int64]


@dataclass(kw_only=True)
class Batch:
    """What goes through the model: real tokens first, then some that fill up the last rows.

    `starts` is the row of each work's first token, in the order of `works`. `sequences_S3` and
    `tables` say whose rows they are, as ops/stack.py has them. `budget_T` is None where every token
    takes all experts.
    """

    works: abc.Sequence[Work]
    starts: abc.Sequence[int]
    num_tokens: int
    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    sequences_S3: Tensor
    tables: Tensor
    budget_T: Tensor | None
    block_size: int
    _groups: list[Group] | None = field(default=None, init=False)

    def groups(self, device: torch.device) -> list[Group]:
        """Return the sequences as torch attends on a device: those alike together."""
        # Kept: when the MTP modules ask, some may have ended and lost their blocks.
        if self._groups is None:
            self._groups = _groups(self.works, self.starts, self.block_size, device)
        return self._groups

    def go_on(self, works: abc.Sequence[Work]) -> None:
        """Take the next works of the same sequences."""
        self.works, self._groups = works, None


class Layout:
    """Lays out one step after the other."""

    def __init__(
        self, *, block_size: int, scratch_slot: int, row_multiple: int, most_experts: int
    ) -> None:
        self._block_size = block_size
        self._scratch_slot = scratch_slot
        self._row_multiple = row_multiple
        self._most_experts = most_experts
        self._standing: _StandingBatch | None = None

    def gather(self, works: abc.Sequence[Work]) -> Batch:
        """Lay out a step's work as tensors; the batch before it must not be used any more."""
        standing = self._standing
        if standing is not None and standing.can_go_on(works):
            standing.go_on(works)
        else:
            standing = self._standing = self._build(works)
        return standing.batch

    def _build(self, works: abc.Sequence[Work]) -> "_StandingBatch":
        """Lay out a step that has nothing to do with the one before, group by group."""
        size = self._block_size
        order = sorted(range(len(works)), key=lambda index: _shape(works[index], size))
        ordered = [works[index] for index in order]
        *starts, num_tokens = accumulate((work.num_rows for work in ordered), initial=0)
        num_filled = round_up(num_tokens, self._row_multiple) - num_tokens
        tokens, positions, slots = _rows(ordered, size)
        sequences, tables = _tables(ordered, starts, size)
        parts = [
            tokens + [0] * num_filled,
            positions + [0] * num_filled,
            slots + [self._scratch_slot] * num_filled,
            sequences,
            tables,
        ]
        # One array and its parts: torch takes a list apart four times as slowly.
        whole = np.array(list(chain.from_iterable(parts)), dtype=np.int64)
        borders = pairwise(accumulate(map(len, parts), initial=0))
        arrays = [whole[first:last] for first, last in borders]
        tokens_T, positions_T, slots_T, flat, tables_ = map(torch.from_numpy, arrays)
        batch = Batch(
            works=ordered,
            starts=starts,
            num_tokens=num_tokens,
            tokens_T=tokens_T,
            positions_T=positions_T,
            slots_T=slots_T,
            sequences_S3=flat.view(-1, 3),
            tables=tables_,
            budget_T=self._budgets(ordered, num_filled),
            block_size=size,
        )
        return _StandingBatch(batch, order, *arrays)

    def _budgets(self, works: abc.Sequence[Work], num_filled: int) -> Tensor | None:
        if all(work.sequence.experts is None for work in works):
            return None
        budgets: list[float] = []
        for work in works:
            granted = work.sequence.experts
            budgets += [self._most_experts if granted is None else granted] * work.num_rows
        return torch.tensor(budgets + [self._most_experts] * num_filled, dtype=torch.float32)


class _StandingBatch:
    """A batch and the memory of its tensors, in which the next step can be written over it."""

    def __init__(
        self,
        batch: Batch,
        order: list[int],
        tokens: Numbers,
        positions: Numbers,
        slots: Numbers,
        sequences: Numbers,
        tables: Numbers,
    ) -> None:
        """Take a batch; `order` says which of the scheduler's works each of its own is."""
        self.batch = batch
        self._order = order
        self._blocks = [work.sequence.blocks for work in batch.works]
        self._tokens = tokens
        self._positions = positions
        self._slots = slots
        self._sequences = sequences
        self._tables = tables
        # Only a batch of single tokens can go on in place: rows would move.
        is_single = batch.num_tokens == len(batch.works)
        self._num_more_steps = _SPARE_BLOCKS * batch.block_size if is_single else 0

    def can_go_on(self, works: abc.Sequence[Work]) -> bool:
        """Whether each sequence of the batch, no other, goes on by a row where it lies."""
        if len(works) != len(self._order) or works[0].num_steps > self._num_more_steps:
            return False
        for index, before, blocks in zip(self._order, self.batch.works, self._blocks, strict=True):
            work = works[index]
            sequence = work.sequence
            # One that was preempted has other blocks, in another list.
            if sequence is not before.sequence or sequence.blocks is not blocks:
                return False
            if work.start != before.end or work.num_rows != 1:
                return False
        return True

    def go_on(self, works: abc.Sequence[Work]) -> None:
        """Write the next step of the same sequences over this one."""
        ordered = [works[index] for index in self._order]
        num, size = len(ordered), self.batch.block_size
        self._tokens[:num] = [work.sequence.tokens[work.start] for work in ordered]
        self._positions[:num] += 1
        self._slots[:num] += 1
        self._num_more_steps -= ordered[0].num_steps
        for row, work in enumerate(ordered):
            # All blocks that it enters: a burst may enter some on its way.
            first, last = (work.start - 1) // size + 1, (work.end - 1) // size
            if first > last:
                continue
            blocks, place = work.sequence.blocks, self._sequences[3 * row + 2]
            self._tables[place + first : place + last + 1] = blocks[first : last + 1]
            if first * size == work.start:
                self._slots[row] = blocks[first] * size
        self.batch.go_on(ordered)


def _rows(works: abc.Sequence[Work], block_size: int) -> tuple[list[int], list[int], list[int]]:
    """Return each row's token, position and slot."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for work in works:
        sequence, end = work.sequence, work.start + work.num_rows
        known = sequence.tokens[work.start : end]
        tokens += known + sequence.drafts[: work.num_rows - len(known)]
        positions += range(work.start, end)
        slots += _slots(sequence.blocks, work.start, end, block_size)
    return tokens, positions, slots


def _slots(blocks: abc.Sequence[int], start: int, end: int, block_size: int) -> list[int]:
    return [
        blocks[position // block_size] * block_size + position % block_size
        for position in range(start, end)
    ]


def _tables(
    works: abc.Sequence[Work], starts: abc.Sequence[int], block_size: int
) -> tuple[list[int], list[int]]:
    """Return whose rows are whose, three numbers a sequence, and the blocks that they name."""
    sequences: list[int] = []
    tables: list[int] = []
    for work, start in zip(works, starts, strict=True):
        sequences += [start, work.num_rows, len(tables)]
        tables += work.sequence.blocks[: -(-work.end // block_size)] + [0] * _SPARE_BLOCKS
    return sequences, tables


def _shape(work: Work, block_size: int) -> tuple[int, int, int]:
    """Return what the works of a group have in common; a prompt's chunk shares with none."""
    size = -(-work.end // block_size)
    # Padding to the longest at most doubles a group's keys.
    span = size.bit_length()
    return work.num_rows, span, id(work) if work.num_rows > _MOST_SHARED_TOKENS else 0


def _groups(
    works: abc.Sequence[Work], starts: abc.Sequence[int], block_size: int, device: torch.device
) -> list[Group]:
    groups, first = [], 0
    while first < len(works):
        shape = _shape(works[first], block_size)
        last = first
        while last < len(works) and _shape(works[last], block_size) == shape:
            last += 1
        groups.append(_group(works[first:last], starts[first], block_size, device))
        first = last
    return groups


def _group(works: abc.Sequence[Work], start: int, block_size: int, device: torch.device) -> Group:
    sizes = [-(-work.end // block_size) for work in works]
    longest = max(sizes)
    table = [
        work.sequence.blocks[:size] + [0] * (longest - size)
        for work, size in zip(works, sizes, strict=True)
    ]
    lengths = [list(range(work.start + 1, work.end + 1)) for work in works]
    return Group(start, torch.tensor(table, device=device), torch.tensor(lengths, device=device))
