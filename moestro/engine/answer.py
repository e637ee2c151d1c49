"""One choice of a request while the engine writes it: what sampling needs beside the sequence.

Knows what may follow and when to end; no tensors. Next: sampler.py, engine.py.
"""

from collections import abc
from dataclasses import dataclass, replace
from typing import cast

from moestro.engine.guide import Guide
from moestro.engine.request import EngineRequest, Finish, Sequence, TokenScore, Work
from moestro.engine.sampler import Outcome, Penalties, Row
from moestro.errors import DataError, MoestroError
from moestro.text.grammar import Grammar

# A draft looks back with the MTP module's own latents. Those of steps without drafts are missing;
# up to this share of a sequence does little harm.
_MOST_MISSING = 1 / 8


@dataclass
class Verdict:
    """What came of one work: the tokens that its sequence grows by, and how its answer ended."""

    scores: list[TokenScore]
    finish: Finish | None = None


class Answer:
    """The state of one choice."""

    def __init__(self, sequence: Sequence, grammar: Grammar | None) -> None:
        self.sequence = sequence
        self.grammar = grammar
        # Tokens to come about which the grammar leaves no choice; it has taken them already.
        self.forced: list[int] = []
        self._ends_forced = False
        self._guide: Guide | None = None
        # Whether a burst went wrong at the token that comes next, which takes a step then.
        self._is_stuck = False
        # What the model thinks before this token follows no grammar.
        self._awaited = None if grammar is None else sequence.request.grammar_after
        self.num_missing = 0
        sampling = sequence.request.sampling
        self.penalties = (
            Penalties(sampling, sequence.request.prompt) if sampling.has_penalties else None
        )
        is_edited = sampling.has_penalties or sampling.logit_bias or sequence.request.bad_words
        self._is_plain = not is_edited
        # Kept from step to step, as mostly nothing of it changes but the position.
        self._next = self._row(0)
        if self._awaited is None:
            self._begin_grammar()

    @property
    def can_draft(self) -> bool:
        """Whether drafts may be tried; a grammar does not follow guesses."""
        has_past = self.num_missing <= _MOST_MISSING * len(self.sequence.tokens)
        return self.grammar is None and has_past

    @property
    def num_ahead(self) -> int:
        """How many tokens can be picked with no look at those between, at least 1.

        All that are left, or as many as are worth guessing where a grammar rules.
        """
        request, num_generated = self.sequence.request, self.sequence.num_generated
        is_banned = bool(request.stop_token_ids) and num_generated < request.sampling.min_tokens
        is_watched = self._is_stuck or self._awaited is not None
        if not self._is_plain or is_banned or is_watched:
            return 1
        num_left = request.max_tokens - num_generated
        if self._guide is None:
            return num_left
        num_guesses = min(num_left, self._guide.num_guesses(request.sampling))
        # A step takes those forced and the one behind them, together.
        return num_guesses if num_guesses > 1 + len(self.forced) else 1

    def rows(self, work: Work) -> list[Row]:
        """Return how to pick what follows a sampled work's last real token and each guess behind.

        They are good until the next call.
        """
        num_known = len(self.sequence.tokens)
        if work.end > num_known or self.forced:
            return [self._row(index) for index in range(work.end - num_known + 1)]
        return [self.next_row()]

    def next_row(self) -> Row:
        """Return how to pick what follows the last token, and in a burst all that follows that."""
        self._next.position = self.sequence.num_generated
        self._next.banned = self._find_banned(())
        return self._next

    def _begin_grammar(self) -> None:
        if self.grammar is not None:
            self._guide = Guide(self.grammar)
            self._next = self._row(0)
            self._force()

    def _row(self, index: int) -> Row:
        sequence, request = self.sequence, self.sequence.request
        sampling = request.sampling
        if self._awaited is not None:
            # An answer that ended within its thoughts would be none.
            sampling = replace(sampling, min_tokens=request.max_tokens)
        is_forced = index < len(self.forced)
        return Row(
            sampling=sampling,
            seed=sequence.seed,
            position=sequence.num_generated + index,
            penalties=self.penalties,
            drafts=tuple(sequence.drafts[:index]),
            stop_token_ids=request.stop_token_ids,
            banned=self._find_banned(sequence.drafts[:index]),
            guide=None if is_forced else self._guide,
            forced=self.forced[index] if is_forced else None,
            top_logprobs=request.top_logprobs,
        )

    def _find_banned(self, drafts: abc.Sequence[int]) -> list[int]:
        """Return the tokens that would complete a bad word behind the answer and the drafts."""
        words, sequence = self.sequence.request.bad_words, self.sequence
        if not words:
            return []
        reach = max(map(len, words))
        start = max(sequence.num_prompt, len(sequence.tokens) - reach)
        written = (*sequence.tokens[start:], *drafts)
        return [word[-1] for word in words if word[:-1] == written[len(written) - len(word) + 1 :]]

    def judge(self, outcomes: abc.Sequence[Outcome]) -> Verdict:
        """Accept the picks as far as the drafts that led to them were right.

        Raises what made picking impossible, if anything did.
        """
        drafts = self.sequence.drafts
        self._is_stuck = False
        verdict = Verdict([])
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, MoestroError):
                raise outcome
            verdict.scores.append(outcome)
            verdict.finish = self._accept(outcome.token_id, index)
            if verdict.finish or index >= len(drafts) or drafts[index] != outcome.token_id:
                break
        return verdict

    def judge_burst(self, outcomes: abc.Sequence[Outcome]) -> Verdict:
        """Accept all picks of a burst, of which only the last can be an end.

        Raises what made picking impossible, unless there are picks before it: they stand, and the
        next step comes to it again.
        """
        if self._guide is not None:
            return self._judge_guesses(outcomes, self._guide)
        scores, last = cast("list[TokenScore]", outcomes), outcomes[-1]
        if isinstance(last, TokenScore):
            return Verdict(scores, self._accept(last.token_id, len(scores) - 1))
        if len(outcomes) == 1:
            raise last
        return Verdict(scores[:-1])

    def _judge_guesses(self, outcomes: abc.Sequence[Outcome], guide: Guide) -> Verdict:
        """Accept a burst's picks as far as the grammar would have led to the same.

        There may be none: then the next step picks by the grammar's mask.
        """
        verdict = Verdict([])
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, MoestroError) or not self._is_right(outcome, guide):
                self._is_stuck = True
                error = outcome if isinstance(outcome, MoestroError) else guide.fault
                if error is not None and index == 0:
                    raise error
                break
            try:
                verdict.finish = self._accept(outcome.token_id, index)
            except DataError as error:
                if index == 0:
                    raise
                # The grammar failed at what it forces; the next step ends the request by that.
                guide.fault, self._is_stuck = error, True
                break
            if outcome.logprob is not None and self.sequence.request.top_logprobs is None:
                outcome = TokenScore(outcome.token_id, None)
            verdict.scores.append(outcome)
            if verdict.finish:
                break
        return verdict

    def _is_right(self, guess: TokenScore, guide: Guide) -> bool:
        """Whether a guess is what would have been picked; the grammar then has taken it."""
        if not self.forced:
            sampling = self.sequence.request.sampling
            is_taken = guide.offer(guess.token_id, sampling, guess.logprob)
            return is_taken and guide.fault is None
        is_right = guess.token_id == self.forced[0]
        if not is_right:
            guide.doubt()
        return is_right

    def _accept(self, token_id: int, index: int) -> Finish | None:
        request: EngineRequest = self.sequence.request
        if self.penalties is not None:
            self.penalties.accept(token_id)
        is_complete = self._guide is not None and self._follow(token_id)
        if token_id == self._awaited:
            self._awaited = None
            self._begin_grammar()
        # A text that its grammar has ended cannot go on, whatever else was asked.
        if is_complete or token_id in request.stop_token_ids:
            return "stop"
        num_generated = self.sequence.num_generated + index + 1
        return "length" if num_generated >= request.max_tokens else None

    def _follow(self, token_id: int) -> bool:
        """Let the grammar take a token that it has not; return whether the text ends with it."""
        assert self.grammar is not None
        assert self._guide is not None
        if self.forced:
            # The grammar may be further than this: it may have taken a guess behind them as well.
            self.forced.pop(0)
            return self._ends_forced and not self.forced
        if not self._guide.has_taken:
            self.grammar.accept(token_id)
        is_complete = self.grammar.is_finished
        self._force()
        return is_complete

    def _force(self) -> None:
        if self.grammar is not None:
            self.forced = self.grammar.force(self.sequence.request.stop_token_ids)
            self._ends_forced = self.grammar.is_finished
