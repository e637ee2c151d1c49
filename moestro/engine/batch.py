"""One step's work -> tensors: a flat batch of tokens, and where their latents go and come from.

Sequences with equally many new tokens and about equally many blocks form a group, so that decoding
costs a few operations, not a few per sequence. Next: pages.py, runner.py.

Shapes: T tokens of the batch, G sequences of a group, S tokens of each, M blocks of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
from torch import Tensor

from moestro.engine.request import Work
from moestro.ops.paged import Group
from moestro.ops.rows import round_up

# More tokens than this form a group of their own: a prompt's chunk.
_MOST_SHARED_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What goes through the model: real tokens first, then some that fill up the last rows.

    `starts` is the row of each work's first token, in the order of `works`. `sequences_S3` and
    `tables` say whose rows they are, as ops/stack.py has them. `budget_T` is None where every token
    takes all experts.
    """

    works: tuple[Work, ...]
    starts: tuple[int, ...]
    num_tokens: int
    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    sequences_S3: Tensor
    tables: Tensor
    budget_T: Tensor | None
    block_size: int

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The sequences as torch attends: those alike together."""
        return tuple(_groups(self.works, self.starts, self.block_size))

    def rows(self, index: int) -> range:
        """Return the rows of work `index`."""
        start = self.starts[index]
        return range(start, start + self.works[index].num_tokens)


def gather(
    works: Sequence[Work],
    *,
    block_size: int,
    scratch_slot: int,
    row_multiple: int,
    most_experts: int,
) -> Batch:
    """Lay out a step's work as tensors, group by group."""
    ordered = sorted(works, key=lambda work: _shape(work, block_size))
    starts, row = [], 0
    for work in ordered:
        starts.append(row)
        row += work.num_tokens
    num_filled = round_up(row, row_multiple) - row
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sequences: list[int] = []
    tables: list[int] = []
    budgets: list[float] = []
    for work, start in zip(ordered, starts, strict=True):
        sequence = work.sequence
        sequences += [start, work.num_tokens, len(tables)]
        tables += sequence.blocks[: -(-work.end // block_size)]
        known = sequence.tokens[work.start : work.end]
        tokens += known + sequence.drafts[: work.num_tokens - len(known)]
        positions += range(work.start, work.end)
        slots += _slots(sequence.blocks, work.start, work.end, block_size)
        granted = most_experts if sequence.experts is None else sequence.experts
        budgets += [granted] * work.num_tokens
    has_budget = any(work.sequence.experts is not None for work in ordered)
    parts = [
        tokens + [0] * num_filled,
        positions + [0] * num_filled,
        slots + [scratch_slot] * num_filled,
        sequences,
        tables,
    ]
    # One tensor and its parts, by way of numpy: torch takes a list apart four times as slowly.
    whole = torch.from_numpy(np.array(list(chain.from_iterable(parts)), dtype=np.int64))
    ends = list(accumulate(map(len, parts), initial=0))
    tokens_T, positions_T, slots_T, flat, tables_ = (
        whole[start:end] for start, end in pairwise(ends)
    )
    return Batch(
        works=tuple(ordered),
        starts=tuple(starts),
        num_tokens=row,
        tokens_T=tokens_T,
        positions_T=positions_T,
        slots_T=slots_T,
        sequences_S3=flat.view(-1, 3),
        tables=tables_,
        budget_T=torch.tensor(budgets + [most_experts] * num_filled) if has_budget else None,
        block_size=block_size,
    )


def _shape(work: Work, block_size: int) -> tuple[int, int, int]:
    """Return what the works of a group have in common; a prompt's chunk shares with none."""
    size = -(-work.end // block_size)
    # Padding to the longest at most doubles a group's keys.
    span = size.bit_length()
    return work.num_tokens, span, id(work) if work.num_tokens > _MOST_SHARED_TOKENS else 0


def _slots(blocks: Sequence[int], start: int, end: int, block_size: int) -> list[int]:
    return [
        blocks[position // block_size] * block_size + position % block_size
        for position in range(start, end)
    ]


def _groups(works: Sequence[Work], starts: Sequence[int], block_size: int) -> list[Group]:
    groups, first = [], 0
    while first < len(works):
        shape = _shape(works[first], block_size)
        last = first
        while last < len(works) and _shape(works[last], block_size) == shape:
            last += 1
        groups.append(_group(works[first:last], starts[first], block_size))
        first = last
    return groups


def _group(works: Sequence[Work], start: int, block_size: int) -> Group:
    sizes = [-(-work.end // block_size) for work in works]
    longest = max(sizes)
    table = [
        work.sequence.blocks[:size] + [0] * (longest - size)
        for work, size in zip(works, sizes, strict=True)
    ]
    lengths = [list(range(work.start + 1, work.end + 1)) for work in works]
    return Group(start, torch.tensor(table), torch.tensor(lengths))
