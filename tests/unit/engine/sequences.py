"""Requests and their sequences, as the engine makes them, and a paper engine that runs them.

The paper engine computes no latents: it writes into each cache position what the position stands
for, and reads it back whenever a model would. Next: test_blocks.py, test_scheduler.py.
"""

import random
from collections.abc import Callable
from typing import Any

from moestro.engine.blocks import BlockPool
from moestro.engine.config import EngineConfig
from moestro.engine.request import EngineRequest, Sequence, Work
from moestro.engine.scheduler import Scheduler

STOP = 0
VOCABULARY = 4
MOST_DRAFTS = 3


def build_request(prompt: list[int], request_id: str = "r", **changes: Any) -> EngineRequest:
    """Build a request for four more tokens, with some fields changed."""
    return EngineRequest(**({"id": request_id, "prompt": tuple(prompt), "max_tokens": 4} | changes))


def build_choices(request: EngineRequest, arrival: int = 0) -> list[Sequence]:
    """Build a sequence for each choice; all but the first follow the first."""
    experts = request.experts if isinstance(request.experts, float) else None
    choices: list[Sequence] = []
    for choice in range(request.num_choices):
        sequence = Sequence(
            request=request,
            choice=choice,
            seed=choice,
            arrival=arrival + choice,
            tokens=list(request.prompt),
            experts=experts,
            leader=choices[0] if choices else None,
        )
        choices.append(sequence)
    return choices


def build_sequence(prompt: list[int], **changes: Any) -> Sequence:
    """Build the only sequence of a request."""
    return build_choices(build_request(prompt, **changes))[0]


def predict(tokens: list[int], sequence: Sequence) -> int:
    """Return the token that the paper model puts behind `tokens`."""
    # Numbers only: the hash of anything else may change from one process to the next.
    key = (*tokens, sequence.seed, sequence.experts or 0.0)
    value = hash(key) % 32
    return 1 + value % (VOCABULARY - 1) if value else STOP


def expect(sequence: Sequence) -> list[int]:
    """Return all tokens that a sequence must have in the end, whatever ran beside it."""
    tokens = list(sequence.request.prompt)
    for _ in range(sequence.request.max_tokens):
        tokens.append(predict(tokens, sequence))
        if tokens[-1] == STOP:
            break
    return tokens


class PaperEngine:
    """Drives a scheduler as the engine does, and checks what must hold in every step."""

    def __init__(
        self,
        config: EngineConfig,
        pool: BlockPool,
        grant: Callable[[Sequence], None] = lambda sequence: None,
        seed: int = 0,
    ) -> None:
        self.config = config
        self.pool = pool
        self.scheduler = Scheduler(config, pool, grant)
        self.live: list[Sequence] = []
        self.ended: list[Sequence] = []
        self._memory: dict[tuple[int, int], object] = {}
        self._random = random.Random(seed)
        self._num_arrivals = 0

    def submit(self, prompt: list[int], **changes: Any) -> list[Sequence]:
        """Submit a request under a new id."""
        self._num_arrivals += 1
        request = build_request(prompt, f"r{self._num_arrivals}", **changes)
        choices = build_choices(request, self._num_arrivals)
        self.scheduler.submit(choices)
        self.live += choices
        return choices

    def abort(self, request_id: str) -> None:
        """Abort a request."""
        self.scheduler.abort(request_id)
        self.live = [each for each in self.live if each.request.id != request_id]
        self.check()

    def step(self, max_prefill_tokens: int = 16) -> list[Work]:
        """Run one step and return its works as they were scheduled."""
        decoding = [each for each in self.live if each.blocks and each.num_pending == 1]
        _, num_prompts = self.scheduler.demand()
        works = self.scheduler.schedule(max_prefill_tokens)
        self._check_works(works, decoding, max_prefill_tokens)
        if not num_prompts and works and all(work.num_tokens == 1 for work in works):
            self._burst(works)
        for work in works:
            self._compute(work)
        for work in works:
            self._settle(work)
        self.check()
        return works

    def drain(self, most_steps: int) -> None:
        """Step until everything has ended, within so many steps."""
        for _ in range(most_steps):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.live
        assert not self.scheduler.has_work
        assert self.pool.usage == 0

    def check(self) -> None:
        """Check the accounts, and that nobody was overtaken by a later arrival of its priority."""
        self.pool.check(self.live)
        assert self.scheduler.num_running == sum(bool(each.blocks) for each in self.live)
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.live)
        leaders = [each for each in self.live if each.leader is None]
        for late in leaders:
            overtaken = [
                each
                for each in leaders
                if each.request.priority == late.request.priority and each.arrival < late.arrival
            ]
            assert not late.has_started or all(each.has_started for each in overtaken)

    def _check_works(
        self, works: list[Work], decoding: list[Sequence], max_prefill_tokens: int
    ) -> None:
        running = [work.sequence for work in works]
        assert works or not self.live
        assert len(set(running)) == len(running) <= self.config.max_batch
        assert sum(work.num_tokens for work in works) <= self.config.max_batch_tokens
        assert all(each in running or not each.blocks for each in decoding)
        prefill = sum(work.num_tokens for work in works if work.sequence not in decoding)
        if any(each in running for each in decoding):
            assert prefill <= max_prefill_tokens
        has_prefill = any(each.blocks and each not in decoding for each in self.live)
        assert prefill > 0 or not has_prefill or not max_prefill_tokens

    def _burst(self, works: list[Work]) -> None:
        """Let some steps be bursts; each is over when the first of its answers ends."""
        most = [each.sequence.request.max_tokens - each.sequence.num_generated for each in works]
        num_steps = min(self._random.randint(1, 6), *most)
        if num_steps > 1:
            self.scheduler.repeat(works, num_steps)
        if works[0].num_steps > 1:
            assert {each.num_steps for each in works} == {num_steps}
            num_run = min(len(self._predicted(each)) for each in works)
            for each in works:
                each.repeat(num_run)

    def _predicted(self, work: Work) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < work.num_steps and STOP not in tokens:
            tokens.append(predict(work.sequence.tokens + tokens, work.sequence))
        return tokens

    def _compute(self, work: Work) -> None:
        sequence, size = work.sequence, self.pool.block_size
        tokens = sequence.tokens + sequence.drafts
        if work.num_steps > 1:
            tokens += self._predicted(work)
        assert 0 <= work.start == sequence.num_computed < work.end <= len(tokens)
        if sequence.request.scores_prompt and sequence.choice == 0 and not sequence.has_started:
            assert work.start == 0
        for position in range(work.end):
            place = (sequence.blocks[position // size], position % size)
            content = (tokens[: position + 1], sequence.experts)
            if position < work.start:
                assert self._memory[place] == content
            else:
                self._memory[place] = content

    def _settle(self, work: Work) -> None:
        sequence = work.sequence
        if work.num_steps > 1:
            new_tokens = self._predicted(work)
        else:
            new_tokens = self._sample(sequence) if work.is_sampled else []
        self.scheduler.settle(work, new_tokens)
        is_full = sequence.num_generated == sequence.request.max_tokens
        if work.is_sampled and (is_full or sequence.tokens[-1] == STOP):
            self._finish(sequence)
        elif work.is_sampled:
            assert sequence.num_pending == 1
            self._draft(sequence)

    def _sample(self, sequence: Sequence) -> list[int]:
        new_tokens: list[int] = []
        most = min(sequence.request.max_tokens - sequence.num_generated, 1 + len(sequence.drafts))
        while len(new_tokens) < most:
            new_tokens.append(predict(sequence.tokens + new_tokens, sequence))
            guess = sequence.drafts[len(new_tokens) - 1 : len(new_tokens)]
            if new_tokens[-1] == STOP or guess != new_tokens[-1:]:
                break
        return new_tokens

    def _finish(self, sequence: Sequence) -> None:
        siblings = [each for each in self.live if each.request is sequence.request]
        is_last = self.scheduler.finish(sequence)
        assert is_last == (len(siblings) == 1)
        assert sequence.tokens == expect(sequence)
        self.live.remove(sequence)
        self.ended.append(sequence)

    def _draft(self, sequence: Sequence) -> None:
        for _ in range(self._random.randint(0, MOST_DRAFTS)):
            right = predict(sequence.tokens + sequence.drafts, sequence)
            wrong = self._random.randrange(VOCABULARY)
            sequence.drafts.append(right if self._random.random() < 0.7 else wrong)
