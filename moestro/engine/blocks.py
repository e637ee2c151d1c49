"""Blocks of the paged cache: who holds which, and which hold a beginning worth sharing.

Knows counts, ids and token ids, no tensors. Position p of a sequence lies in its block
`blocks[p // block_size]`. Next: scheduler.py, pages.py.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from moestro.engine.request import Sequence

_KEY_BYTES = 16


class BlockPool:
    """All blocks of one cache.

    A full block of computed positions is registered under a key of all tokens up to its end and of
    the budget that they were computed with: latents depend on both. A block that nobody holds is
    free; if it is registered it can still be found, until the room is needed: then those go first
    that were released longest ago.
    """

    def __init__(self, num_blocks: int, block_size: int, has_prefix_reuse: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.has_prefix_reuse = has_prefix_reuse
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self._num_holders = [0] * num_blocks
        self._blank = list(reversed(range(num_blocks)))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._block_of_key: dict[bytes, int] = {}
        self._key_of_block: dict[int, bytes] = {}

    @property
    def num_tokens(self) -> int:
        """How many positions the cache holds: no sequence can have more."""
        return self.num_blocks * self.block_size

    @property
    def num_free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._blank) + len(self._idle)

    @property
    def usage(self) -> float:
        """The share of blocks that somebody holds."""
        return 1 - self.num_free / self.num_blocks

    def admit(self, sequence: Sequence, end: int, spare: int = 0) -> bool:
        """Give a sequence without blocks all for its positions up to `end`, or none.

        Blocks that hold its beginning already are shared, and `num_computed` counts their
        positions; at least one token is left to compute. `spare` blocks stay free.
        """
        assert not sequence.blocks, "a sequence is admitted once"
        shared = self._find(sequence)
        num_new = self._num_blocks(end) - len(shared)
        num_idle = sum(block in self._idle for block in shared)
        if num_new + num_idle + spare > self.num_free:
            return False
        for block in shared:
            self._idle.pop(block, None)
            self._num_holders[block] += 1
        sequence.blocks = shared + [self._take() for _ in range(num_new)]
        sequence.num_computed = len(shared) * self.block_size
        if not sequence.has_started:
            self._count(sequence)
        return True

    def reserve(self, sequence: Sequence, end: int) -> bool:
        """Let a sequence grow to position `end`: it gets all the blocks it lacks, or none."""
        num_new = self._num_blocks(end) - len(sequence.blocks)
        if num_new > self.num_free:
            return False
        sequence.blocks.extend(self._take() for _ in range(num_new))
        return True

    def register(self, sequence: Sequence, start: int) -> None:
        """Offer to others the blocks that `num_computed` has filled since it was `start`."""
        if not self.has_prefix_reuse:
            return
        first, end = start // self.block_size, sequence.num_computed // self.block_size
        self._extend_keys(sequence, end)
        for index in range(first, end):
            block, key = sequence.blocks[index], sequence.block_keys[index]
            # Two may compute the same at the same time: the first one's block is found.
            if key not in self._block_of_key:
                self._block_of_key[key] = block
                self._key_of_block[block] = key

    def release(self, sequence: Sequence) -> None:
        """Take all blocks from a sequence; `num_computed` becomes 0."""
        # From the end: a beginning is of use to more requests and has to go last.
        for block in reversed(sequence.blocks):
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            if block in self._key_of_block:
                self._idle[block] = None
            else:
                self._blank.append(block)
        sequence.blocks = []
        sequence.num_computed = 0

    def check(self, holders: Iterable[Sequence]) -> None:
        """Prove that every block is accounted for, given all sequences that hold any."""
        held = Counter(block for sequence in holders for block in sequence.blocks)
        assert held == Counter({block: n for block, n in enumerate(self._num_holders) if n})
        assert sorted([*held, *self._idle, *self._blank]) == list(range(self.num_blocks))
        assert all(block in self._key_of_block for block in self._idle)
        assert not any(block in self._key_of_block for block in self._blank)
        assert self._key_of_block == {block: key for key, block in self._block_of_key.items()}

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _find(self, sequence: Sequence) -> list[int]:
        if not self._looks_up(sequence):
            return []
        # Never all tokens: the last one has to be computed to know what follows.
        most = (len(sequence.tokens) - 1) // self.block_size
        self._extend_keys(sequence, most)
        found: list[int] = []
        for key in sequence.block_keys[:most]:
            block = self._block_of_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def _looks_up(self, sequence: Sequence) -> bool:
        # The scores of a prompt come from computing all of it, once for all its choices.
        is_scored = (
            sequence.request.scores_prompt
            and sequence.leader is None
            and sequence.num_generated == 0
        )
        return self.has_prefix_reuse and not is_scored

    def _count(self, sequence: Sequence) -> None:
        sequence.num_cached = sequence.num_computed
        if self._looks_up(sequence):
            self.num_query_tokens += len(sequence.tokens)
            self.num_hit_tokens += sequence.num_cached

    def _extend_keys(self, sequence: Sequence, num_blocks: int) -> None:
        keys, size = sequence.block_keys, self.block_size
        for index in range(len(keys), num_blocks):
            parent = keys[-1] if keys else _root_key(sequence.experts)
            token_ids = array("q", sequence.tokens[index * size : (index + 1) * size])
            keys.append(_digest(parent + token_ids.tobytes()))

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of_key[self._key_of_block.pop(block)]
        self._num_holders[block] = 1
        return block


def _root_key(experts: float | None) -> bytes:
    return _digest(b"all" if experts is None else array("d", [experts]).tobytes())


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_KEY_BYTES).digest()
