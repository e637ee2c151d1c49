"""One request under way: its choices, its clock, and the events that tell of it.

Knows what happened, not why. Next: engine.py.

Shapes: T tokens of the step's batch, D width.
"""

from torch import Tensor

from moestro.engine.answer import Verdict
from moestro.engine.request import (
    EndEvent,
    EngineRequest,
    Event,
    FailEvent,
    PromptEvent,
    Sequence,
    StartEvent,
    TokenScore,
    TokensEvent,
    Visits,
    Work,
)
from moestro.engine.runner import Gates, Runner
from moestro.engine.sampler import score
from moestro.errors import BackendError, CheckpointError, MoestroError

# Logits of this many prompt tokens at once: a whole prompt's would fill memory.
_MOST_SCORED = 64


class Progress:
    """What the engine remembers of a request beside its sequences."""

    def __init__(self, request: EngineRequest, now_s: float) -> None:
        self.request = request
        self.choices: list[Sequence] = []
        self.num_drafted = 0
        self.num_accepted = 0
        self.has_started = False
        self._submitted_s = now_s
        self._started_s = now_s
        self._first_token_s: float | None = None
        self._scores: dict[int, TokenScore] = {}

    def start(self, sequence: Sequence, now_s: float) -> Event:
        """Note that the first choice runs."""
        self.has_started = True
        self._started_s = now_s
        return StartEvent(
            request_id=self.request.id,
            cached_tokens=sequence.num_cached,
            experts=sequence.experts,
            queue_s=now_s - self._submitted_s,
        )

    def score_prompt(
        self, work: Work, first_row: int, hidden_TD: Tensor, runner: Runner
    ) -> list[Event]:
        """Score the part of the prompt that follows a work's tokens; report the whole at its end.

        Nothing where nobody asked for it. CheckpointError where the logits are not finite.
        """
        prompt, sequence = self.request.prompt, work.sequence
        # Who was preempted in the middle of an answer computes the prompt again, but has told it.
        is_told = sequence.num_generated > 0
        if not self.request.scores_prompt or sequence.choice or is_told:
            return []
        end = min(work.end, len(prompt) - 1)
        for start in range(work.start, end, _MOST_SCORED):
            positions = range(start, min(start + _MOST_SCORED, end))
            rows = [first_row + position - work.start for position in positions]
            targets = [prompt[position + 1] for position in positions]
            scores = score(runner.logits(hidden_TD, rows), targets, self.request.top_logprobs or 0)
            self._scores.update(zip(positions, scores, strict=True))
        if work.end < len(prompt):
            return []
        first = TokenScore(token_id=prompt[0], logprob=None)
        ordered = [self._scores[position] for position in range(len(prompt) - 1)]
        return [PromptEvent(request_id=self.request.id, scores=(first, *ordered))]

    def report(
        self, sequence: Sequence, verdict: Verdict, rows: range, gates: Gates | None, now_s: float
    ) -> Event:
        """Tell of new tokens, each of which was predicted in the gates' row of its place."""
        if self._first_token_s is None:
            self._first_token_s = now_s
        num_experts: tuple[float, ...] = ()
        visits: tuple[Visits, ...] = ()
        if gates is not None:
            num_experts = tuple(gates.num_experts[rows.start : rows.stop : rows.step])
            if self.request.wants_xray:
                visits = tuple(map(gates.visits, rows))
        scores = tuple(verdict.scores)
        return TokensEvent(
            self.request.id, sequence.choice, scores, num_experts, visits, verdict.finish
        )

    def end(self, now_s: float) -> Event:
        """Note that the last choice ended."""
        first_s = now_s if self._first_token_s is None else self._first_token_s
        return EndEvent(
            request_id=self.request.id,
            prefill_s=first_s - self._started_s,
            decode_s=now_s - first_s,
            draft_tokens=self.num_drafted,
            accepted_draft_tokens=self.num_accepted,
        )

    def fail(self, error: MoestroError) -> Event:
        """Note that the request cannot be answered."""
        is_ours = isinstance(error, BackendError | CheckpointError)
        return FailEvent(
            request_id=self.request.id,
            message=str(error),
            is_callers_fault=not is_ours,
            param=error.param,
        )
