"""What a step is to be, by what the steps before it cost: drafts, a share for prompts, or a burst.

Learns from seconds and counts; who gets a place is the scheduler's matter. Next: scheduler.py,
pace.py, stride.py, draft.py.
"""

from collections.abc import Callable, Mapping

from moestro.engine.answer import Answer
from moestro.engine.config import EngineConfig
from moestro.engine.draft import Drafter
from moestro.engine.pace import Pace
from moestro.engine.request import Sequence, Work
from moestro.engine.scheduler import Scheduler
from moestro.engine.step import StepMix, StepOutput, UndraftedStep
from moestro.engine.stride import Stride

Answers = Mapping[Sequence, Answer]


class Planner:
    """Plans the next step and learns from the last: `draft`, `plan`, then `observe`, in turn.

    Steps without work are not observed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        drafter: Drafter,
        config: EngineConfig,
        clock: Callable[[], float],
        *,
        has_bursts: bool,
    ) -> None:
        self._scheduler = scheduler
        self._drafter = drafter
        self._pace = Pace(config.max_stall, config.max_batch_tokens)
        self._stride = Stride(config.burst_s if has_bursts else 0.0)
        self._clock = clock
        self._last: UndraftedStep | None = None
        # When the step under way began, and when its drafts were there.
        self._start_s = self._drafted_s = 0.0

    def draft(self, answers: Answers) -> None:
        """Draft behind the last step, whose tokens are on their way to their readers by now."""
        last, self._last = self._last, None
        self._start_s = self._drafted_s = self._clock()
        if last is None:
            return
        output, mix = last.output, last.mix
        under_way, has_prompts = _under_way(output, answers), mix.num_prompt_tokens > 0
        self._drafter.run(output.batch, output.hidden_TD, under_way, has_prompts)
        self._drafted_s = self._clock()
        if output.is_burst:
            return
        # Only now is known what the prompts of that step cost: the modules read them too.
        seconds = last.seconds + self._drafted_s - self._start_s
        self._pace.observe(mix.num_decode_tokens, mix.num_prompt_tokens, seconds)

    def plan(self, answers: Answers) -> list[Work]:
        """Choose the step's work: a burst, where nothing but answers under way can go on."""
        scheduler = self._scheduler
        num_decode_tokens, num_prompts = scheduler.demand()
        num_allowed = self._pace.prefill_tokens(num_decode_tokens, num_prompts)
        works = scheduler.schedule(num_allowed)
        # Those who wait for a place do so until an answer ends, and a burst ends with it.
        is_held_back = num_prompts > 0 and not num_allowed
        running = [answers[work.sequence] for work in works]
        if is_held_back or not all(map(_is_next, works, running)):
            return works
        if self._drafter.is_drafting_for(running):
            return works
        most = min([answer.num_ahead for answer in running], default=1)
        num_steps = self._stride.steps(len(works), most)
        if num_steps > 1:
            scheduler.repeat(works, num_steps)
        return works

    def observe(self, output: StepOutput, mix: StepMix, num_generated: int, now_s: float) -> None:
        """Learn from how long a step took that is settled now."""
        num_works, num_steps = len(output.batch.works), output.num_steps
        seconds = now_s - self._drafted_s
        self._last = UndraftedStep(output, mix, seconds)
        if mix.num_prompt_tokens or mix.has_forced:
            # Tokens that come free would pass for the work of drafts, or make drafts look useless.
            return
        if not mix.has_guesses:
            self._stride.observe(num_works, num_steps, seconds)
        self._drafter.observe(
            num_works,
            mix.has_guesses,
            num_generated / num_steps,
            (now_s - self._start_s) / num_steps,
        )


def _is_next(work: Work, answer: Answer) -> bool:
    """Whether a work is the next token of an answer that has begun, and at most forced ones."""
    sequence = work.sequence
    # An answer's first token is told of at once.
    if not (work.is_decode and work.is_sampled and sequence.num_generated):
        return False
    return work.num_tokens == 1 or bool(answer.forced)


def _under_way(output: StepOutput, answers: Answers) -> dict[Sequence, Answer]:
    return {
        work.sequence: answers[work.sequence]
        for work in output.batch.works
        if work.sequence in answers and work.sequence.num_pending == 1
    }
