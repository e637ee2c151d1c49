"""Which sequences run in the next step, and how many tokens of each.

Continuous batching with chunked prefill: answers under way go first, prompts fill up what is left.
Knows counts and priorities; no tensors, no clock. Next: waiting.py, blocks.py, planner.py.
"""

import heapq
from bisect import insort
from collections import abc
from collections.abc import Callable, Iterator

from moestro.engine.blocks import BlockPool
from moestro.engine.config import EngineConfig
from moestro.engine.request import Sequence, Work
from moestro.engine.waiting import Waiting, rank
from moestro.errors import ConfigError

# Of the places in a batch, one in so many is for clients' first answers only.
_PLACES_PER_SPARE = 8


class Scheduler:
    """Shares the steps of one model between all sequences.

    Lower priority numbers go first, then earlier arrivals; nobody is overtaken by a later arrival
    of the same priority. A client that asks for many answers at once has its further ones queue
    as if they came one by one, and an eighth of the places is not for those, so that it cannot
    keep others waiting for all of them. `grant` is called before each attempt to admit a sequence
    for the first time and may set its budget; choices with a leader get the leader's. The engine
    runs the works of `schedule`, then calls `settle` for each, and `finish` for a choice that has
    ended.
    """

    def __init__(
        self, config: EngineConfig, pool: BlockPool, grant: Callable[[Sequence], None]
    ) -> None:
        self.num_preemptions = 0
        self._config = config
        self._pool = pool
        self._grant = grant
        # By rank, best first. What runs has blocks, what waits has none.
        self._running: list[Sequence] = []
        self._waiting = Waiting()
        self._followers: dict[Sequence, list[Sequence]] = {}
        self._num_followers = 0
        self._requests: dict[str, list[Sequence]] = {}

    @property
    def num_running(self) -> int:
        """How many sequences hold a place in the batch."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """How many sequences have no place yet, or had to give it back."""
        return len(self._waiting) + self._num_followers

    @property
    def num_waiting_tokens(self) -> int:
        """How many tokens wait to be computed; a prompt counts once for all its choices."""
        return sum(sequence.num_pending for sequence in self._waiting)

    def demand(self) -> tuple[int, int]:
        """Return what the next step is asked for: tokens of answers, and sequences of prompts.

        The answers under way want one token each and their drafts; a sequence counts as a prompt,
        placed or not, while it has tokens to compute before it gets another.
        """
        num_decoding = num_tokens = 0
        for sequence in self._running:
            if _is_decoding(sequence):
                num_decoding += 1
                num_tokens += 1 + len(sequence.drafts)
        return num_tokens, self.num_waiting + len(self._running) - num_decoding

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._requests)

    def submit(self, choices: abc.Sequence[Sequence]) -> None:
        """Queue all choices of a request, the leader first; ConfigError if it can never run."""
        request = choices[0].request
        assert request.id not in self._requests, f"request {request.id} is here already"
        _check_fits(choices[0], self._pool)
        self._requests[request.id] = list(choices)
        for sequence in choices:
            if sequence.leader is None:
                self._waiting.add(sequence)
            else:
                self._followers.setdefault(sequence.leader, []).append(sequence)
                self._num_followers += 1

    def schedule(self, max_prefill_tokens: int) -> list[Work]:
        """Choose the next step's work, decodes first.

        At most `max_prefill_tokens` tokens of prompts go beside decodes. While that is not 0, each
        step gets on with a prompt if there is one. With work left the list is never empty.
        """
        decodes = self._secure_decodes()
        room = self._config.max_batch_tokens - len(decodes)
        has_prefill = len(decodes) < len(self._running) or len(self._waiting) > 0
        # Drafts are a gamble and must leave room for prompts, which are not.
        works = self._plan_decodes(decodes, room // 2 if has_prefill else room)
        if not has_prefill:
            return works
        room = self._config.max_batch_tokens - sum(work.num_tokens for work in works)
        if decodes:
            room = min(room, max_prefill_tokens)
        return works + self._plan_prefills(room)

    def repeat(self, works: abc.Sequence[Work], num_steps: int) -> None:
        """Make works of one token each a burst of so many steps, if all find room for it."""
        for work in works:
            # Blocks that a sequence has too early do no harm; it gets them anyway.
            if not self._pool.reserve(work.sequence, work.start + num_steps):
                return
        for work in works:
            work.repeat(num_steps)

    def settle(self, work: Work, new_tokens: abc.Sequence[int]) -> None:
        """Note that work was done and append what came of it to its sequence.

        `new_tokens` are the drafts that proved right and the token behind them, or a burst's, cut
        where the answer ends: at least one if the work is sampled and an answer is wanted, else
        none. Not for a sequence that has ended meanwhile.
        """
        sequence = work.sequence
        # A wrong draft's latents stay behind the end, to be written over.
        num_right = max(len(new_tokens) - 1, 0)
        sequence.num_computed = min(work.end, len(sequence.tokens) + num_right)
        sequence.tokens += new_tokens
        sequence.drafts = []
        sequence.has_started = True
        size = self._pool.block_size
        if sequence.num_computed // size > work.start // size:
            self._pool.register(sequence, work.start)
        if self._followers and sequence.num_computed >= sequence.num_prompt:
            self._wake_followers(sequence)

    def finish(self, sequence: Sequence) -> bool:
        """End a choice and free its blocks; return whether it was its request's last."""
        self._wake_followers(sequence)
        self._leave(sequence)
        self._pool.release(sequence)
        sequence.is_finished = True
        request_id = sequence.request.id
        self._requests[request_id].remove(sequence)
        if not self._requests[request_id]:
            del self._requests[request_id]
        return request_id not in self._requests

    def abort(self, request_id: str) -> None:
        """End all choices of a request; one that is unknown or has ended is ignored."""
        for sequence in list(self._requests.get(request_id, [])):
            self.finish(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence from where it is: the batch, the queue, or behind its leader."""
        behind = self._followers.get(sequence.leader, []) if sequence.leader else []
        if sequence.blocks:
            self._running.remove(sequence)
        elif sequence in behind:
            behind.remove(sequence)
            self._num_followers -= 1
        else:
            self._waiting.remove(sequence)

    def _secure_decodes(self) -> list[Sequence]:
        decodes = []
        size = self._pool.block_size
        for sequence in [each for each in self._running if _is_decoding(each)]:
            # Whoever ranks behind may have lost its blocks to one before.
            num_held = len(sequence.blocks) * size
            if num_held and (len(sequence.tokens) <= num_held or self._make_room(sequence)):
                decodes.append(sequence)
        return decodes

    def _make_room(self, sequence: Sequence) -> bool:
        while not self._pool.reserve(sequence, len(sequence.tokens)):
            worst = self._running[-1]
            self._preempt(worst)
            if worst is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._pool.release(sequence)
        sequence.drafts = []
        self._waiting.add(sequence)
        self.num_preemptions += 1

    def _plan_decodes(self, decodes: list[Sequence], draft_room: int) -> list[Work]:
        works = []
        for sequence in decodes:
            if sequence.drafts:
                self._fit_drafts(sequence, draft_room)
                draft_room -= len(sequence.drafts)
            end = len(sequence.tokens) + len(sequence.drafts)
            works.append(Work(sequence=sequence, start=sequence.num_computed, end=end))
        return works

    def _fit_drafts(self, sequence: Sequence, room: int) -> None:
        # The last token of an answer is never computed, so that no draft can stand for it.
        left = sequence.request.max_tokens - sequence.num_generated - 1
        del sequence.drafts[max(min(room, left), 0) :]
        if not self._pool.reserve(sequence, len(sequence.tokens) + len(sequence.drafts)):
            sequence.drafts = []

    def _plan_prefills(self, room: int) -> list[Work]:
        works: list[Work] = []
        is_open = True
        for sequence in self._prefill_order():
            if not room:
                break
            if not sequence.blocks:
                # After the first that finds no blocks nobody is admitted: it would be overtaken.
                is_open = is_open and self._admit(sequence)
                if not is_open:
                    continue
            end = min(sequence.num_computed + room, len(sequence.tokens))
            room -= end - sequence.num_computed
            works.append(Work(sequence=sequence, start=sequence.num_computed, end=end))
        return works

    def _prefill_order(self) -> Iterator[Sequence]:
        under_way = [sequence for sequence in self._running if not _is_decoding(sequence)]
        most, num_running = self._config.max_batch, len(self._running)
        num_further = sum(sequence.is_further for sequence in self._running)
        most_further = most - most // _PLACES_PER_SPARE
        candidates = self._waiting.best(most - num_running, most_further - num_further)
        return heapq.merge(under_way, candidates, key=rank)

    def _admit(self, sequence: Sequence) -> bool:
        if not sequence.has_started:
            self._set_budget(sequence)
        # All of its tokens get their blocks now, so that a prompt under way never lacks any, and
        # each that runs can grow by a block before anyone has to make room for it.
        if not self._pool.admit(sequence, len(sequence.tokens), spare=len(self._running)):
            return False
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=rank)
        return True

    def _set_budget(self, sequence: Sequence) -> None:
        before = sequence.experts
        if sequence.leader is None:
            self._grant(sequence)
        else:
            sequence.experts = sequence.leader.experts
        if sequence.experts != before:
            sequence.block_keys = []

    def _wake_followers(self, leader: Sequence) -> None:
        followers = self._followers.pop(leader, [])
        self._num_followers -= len(followers)
        for sequence in followers:
            self._waiting.add(sequence)


def _is_decoding(sequence: Sequence) -> bool:
    # Not `num_pending`: this is asked of all that runs in each step.
    return len(sequence.tokens) - sequence.num_computed == 1


def _check_fits(sequence: Sequence, pool: BlockPool) -> None:
    request = sequence.request
    if not request.prompt:
        raise ConfigError("the prompt has no tokens: send at least one")
    # The last token of an answer is never computed.
    num_tokens = len(request.prompt) + max(request.max_tokens - 1, 0)
    if num_tokens > pool.num_tokens:
        raise ConfigError(
            f"prompt and answer need {num_tokens} tokens of cache, which has {pool.num_tokens}:"
            " lower max_tokens, shorten the prompt or raise engine.cache.num_tokens"
        )
