"""Speculative decoding with the checkpoint's own MTP modules: guesses at the tokens to come.

A module looks at what the main model made of each token and at the token that followed, and writes
latents of its own beside the main model's. Drafts are verified in the next step by picking what
would have been picked without them (sampler.py), so they change how fast an answer comes and never
what it says. Next: payoff.py for when they pay.

Shapes: T tokens of the batch, D width, N answers to draft for.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from moestro.engine.answer import Answer
from moestro.engine.batch import Batch
from moestro.engine.config import DraftConfig
from moestro.engine.payoff import Payoff
from moestro.engine.request import Sequence
from moestro.engine.runner import Runner
from moestro.engine.sampler import Row, draft


class Drafter:
    """Runs the MTP modules behind a step and leaves drafts in the sequences."""

    def __init__(self, runner: Runner, config: DraftConfig) -> None:
        self.num_drafts = 0
        self.num_tokens = 0
        self.num_accepted = 0
        self._runner = runner
        self._num_modules = len(runner.model.mtp) if config.mode != "off" else 0
        self._payoff = Payoff(config.mode if self._num_modules else "off")

    def is_drafting(self, num_answers: int) -> bool:
        """Whether so many answers would get drafts now, if all may have them."""
        return self._payoff.is_drafting(max(num_answers, 1))

    def is_drafting_for(self, answers: Collection[Answer]) -> bool:
        """Whether any of these answers would get a draft now: none that follows a grammar."""
        return self.is_drafting(len(answers)) and any(each.grammar is None for each in answers)

    def run(
        self,
        batch: Batch,
        hidden_TD: Tensor,
        under_way: Mapping[Sequence, Answer],
        has_prompts: bool,
    ) -> None:
        """Draft behind a settled batch for the answers under way, if that pays.

        Prompts always go through the modules: without their latents no later draft is any good.
        """
        if not self._num_modules:
            return
        is_drafting = self.is_drafting_for(under_way.values())
        if not (is_drafting or has_prompts):
            for work in batch.works:
                if work.sequence in under_way:
                    under_way[work.sequence].num_missing += work.num_steps
            return
        rows = {
            work.sequence: start + work.sequence.num_computed - 1 - work.row_start
            for work, start in zip(batch.works, batch.starts, strict=True)
            if is_drafting
            and work.sequence in under_way
            and under_way[work.sequence].can_draft
            # A burst whose last pick failed has no row of the last that stands.
            and work.row_start < work.sequence.num_computed
        }
        for depth in range(self._num_modules):
            next_T = _next_tokens(batch, depth)
            hidden_TD = self._runner.look_ahead(batch, hidden_TD, next_T, depth)
            if rows:
                logits_NV = self._runner.logits(hidden_TD, list(rows.values()))
                guesses = draft(logits_NV, [_row(sequence) for sequence in rows])
                for sequence, guess in zip(rows, guesses, strict=True):
                    sequence.drafts.append(guess)

    def count(self, num_drafts: int, num_accepted: int) -> None:
        """Note how many of an answer's drafts proved right."""
        if num_drafts:
            self.num_drafts += 1
            self.num_tokens += num_drafts
            self.num_accepted += num_accepted

    def observe(
        self, num_answers: int, had_drafts: bool, num_tokens: float, seconds: float
    ) -> None:
        """Learn from a step without prompts what drafting does to the speed."""
        if self._num_modules:
            self._payoff.observe(num_answers, had_drafts, num_tokens, seconds)


def _next_tokens(batch: Batch, depth: int) -> Tensor:
    """Return the token `depth` + 1 places behind each row's, a draft where there is none yet."""
    next_T = torch.zeros_like(batch.tokens_T)
    for work, start in zip(batch.works, batch.starts, strict=True):
        tokens = work.sequence.tokens + work.sequence.drafts
        # Behind a draft that proved wrong nothing is known; its latents are written over later.
        following = tokens[work.row_start + depth + 1 : work.end + depth + 1]
        next_T[start : start + len(following)] = torch.tensor(following, dtype=next_T.dtype)
    return next_T


def _row(sequence: Sequence) -> Row:
    return Row(
        sampling=sequence.request.sampling,
        seed=sequence.seed,
        position=sequence.num_generated + len(sequence.drafts),
    )
