"""READ FIRST: many requests through one model: plan -> run -> pick -> settle, step by step.

A small model's answers go on by several tokens in a step, a burst, when nobody waits for a prompt.

Tokens in, tokens out; knows no text and no HTTP. What a request gets does not depend on the others:
neither its tokens nor, with `is_batch_invariant`, a single bit. Next: planner.py for what runs,
runner.py for the model, answer.py and sampler.py for the tokens, worker.py for the process.

Shapes: T tokens of the step's batch, D width.
"""

import logging
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from moestro.engine.answer import Answer, Verdict
from moestro.engine.batch import Batch, Layout
from moestro.engine.blocks import BlockPool
from moestro.engine.config import EngineConfig
from moestro.engine.draft import Drafter
from moestro.engine.intake import Intake
from moestro.engine.meter import Meter
from moestro.engine.pages import Pages
from moestro.engine.planner import Planner
from moestro.engine.pressure import Pressure
from moestro.engine.progress import Progress
from moestro.engine.request import EngineRequest, Event, Sequence, Work
from moestro.engine.runner import Runner, choose_row_multiples
from moestro.engine.sampler import Outcome, Row, burst_outcomes, burst_pick_row, pick
from moestro.engine.scheduler import Scheduler
from moestro.engine.sizes import cache_blocks, length_limit
from moestro.engine.stats import EngineStats
from moestro.engine.step import StepMix, StepOutput
from moestro.errors import MoestroError
from moestro.model.model import Transformer
from moestro.ops.rows import RowMultiples
from moestro.text.grammar import Grammar, GrammarFactory

log = logging.getLogger(__name__)


class Engine:
    """One model, its cache, and all requests that share them."""

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig,
        grammars: GrammarFactory | None = None,
        clock: Callable[[], float] = time.monotonic,
        multiples: RowMultiples | None = None,
    ) -> None:
        """Share a model; `multiples` are measured unless somebody has done so already."""
        shape, block_size = model.config, config.cache.block_size
        device = model.embed_tokens.weight.device
        num_blocks = cache_blocks(config, shape, model.cache_dtype, device)
        self.model = model.eval()
        self.max_length = length_limit(config, shape)
        self._clock = clock
        self._pool = BlockPool(num_blocks, block_size, config.cache.has_prefix_reuse)
        self._intake = Intake(shape, min(self.max_length, self._pool.num_tokens), grammars)
        self._scheduler = Scheduler(config, self._pool, self._grant)
        pages = Pages(shape, num_blocks, block_size, model.cache_dtype, device)
        if multiples is None:
            is_needed = config.is_batch_invariant
            multiples = choose_row_multiples(model) if is_needed else RowMultiples()
        may_expand = not config.is_batch_invariant
        self._runner = Runner(model, pages, multiples, may_expand)
        self._layout = Layout(
            block_size=block_size,
            scratch_slot=pages.scratch_slot,
            row_multiple=multiples.tokens,
            most_experts=shape.num_experts_per_tok,
        )
        self._pressure = Pressure(config.pressure, shape.fewest_experts, shape.num_experts_per_tok)
        self._drafter = Drafter(self._runner, config.draft)
        self._planner = Planner(
            self._scheduler, self._drafter, config, clock, has_bursts=self._runner.can_decode
        )
        # Of the main model: each MTP module has one more.
        num_gates = len(model.gates()) - len(model.mtp)
        self._meter = Meter(num_gates, shape.n_routed_experts, shape.num_experts_per_tok)
        self._answers: dict[Sequence, Answer] = {}
        self._progress: dict[str, Progress] = {}
        self._events: list[Event] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._progress or self._events)

    def submit(self, request: EngineRequest) -> None:
        """Take a request; ConfigError or DataError if it can never be answered."""
        self._intake.take(request)
        self._progress[request.id] = Progress(request, self._clock())

    def abort(self, request_id: str) -> None:
        """Forget a request and free its blocks at once; unknown ids are ignored."""
        self._intake.drop(request_id)
        progress = self._progress.pop(request_id, None)
        if progress is not None:
            self._scheduler.abort(request_id)
            for sequence in progress.choices:
                self._answers.pop(sequence, None)

    def cut(self, request_id: str, choice: int) -> None:
        """End one choice as it is, as if its answer had ended; unknown ones are ignored."""
        progress = self._progress.get(request_id)
        if progress is None:
            return
        for sequence in progress.choices:
            if sequence.choice == choice and sequence in self._answers:
                self._finish(sequence, progress)

    @torch.inference_mode()
    def step(self, wake_file: int | None = None) -> list[Event]:
        """Advance everything that runs by one pass of the model, or by a burst.

        A burst ends early when `wake_file`, a descriptor, can be read.
        """
        self._planner.draft(self._answers)
        self._enqueue_ready()
        self._note_queue()
        works = self._planner.plan(self._answers)
        if works:
            self._run(works, wake_file)
        elif len(self._intake):
            # Only grammars are under way, in a thread that needs the processor.
            time.sleep(0.001)
        self._note_queue()
        events, self._events = self._events, []
        return events

    def stats(self) -> EngineStats:
        """Return what is counted."""
        now_s = self._clock()
        # Between two requests nobody else does, and the level would be told as it once was.
        self._note_queue()
        scheduler, drafter, meter = self._scheduler, self._drafter, self._meter
        prompt_rate, generation_rate = meter.rates(now_s)
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + len(self._intake),
            num_waiting_tokens=scheduler.num_waiting_tokens,
            cache_usage=self._pool.usage,
            prompt_tokens_per_s=prompt_rate,
            generation_tokens_per_s=generation_rate,
            experts_level=self._pressure.level if self.model.config.has_budget else None,
            prompt_tokens=meter.prompt_tokens,
            generation_tokens=meter.generation_tokens,
            prefix_queries=self._pool.num_query_tokens,
            prefix_hits=self._pool.num_hit_tokens,
            preemptions=scheduler.num_preemptions,
            num_drafts=drafter.num_drafts,
            draft_tokens=drafter.num_tokens,
            accepted_draft_tokens=drafter.num_accepted,
            is_drafting=drafter.is_drafting(scheduler.num_running),
            experts=meter.experts(now_s),
        )

    def _enqueue_ready(self) -> None:
        for request, grammar in self._intake.pop_ready():
            try:
                if isinstance(grammar, MoestroError):
                    raise grammar
                self._enqueue(request, grammar)
            except MoestroError as error:
                self._fail(request.id, error)

    def _enqueue(self, request: EngineRequest, grammar: Grammar | None) -> None:
        choices = self._intake.choices(request)
        self._scheduler.submit(choices)
        self._progress[request.id].choices = choices
        for sequence in choices:
            self._answers[sequence] = Answer(sequence, None if grammar is None else grammar.copy())

    def _grant(self, sequence: Sequence) -> None:
        wish = sequence.request.experts
        level = self._pressure.level if wish == "auto" else wish
        is_most = level == self.model.config.num_experts_per_tok
        sequence.experts = None if is_most else level

    def _note_queue(self) -> None:
        scheduler = self._scheduler
        self._pressure.update(self._clock(), scheduler.num_waiting, scheduler.num_running)

    def _run(self, works: list[Work], wake_file: int | None) -> None:
        """One pass of the model, or a burst of them, and all that follows from it."""
        self._note_starts(works)
        batch = self._layout.gather(works)
        mix = StepMix.of(batch, any(self._answers[work.sequence].forced for work in works))
        is_burst = works[0].num_steps > 1
        output = self._decode(batch, wake_file) if is_burst else self._forward(batch)
        num_generated = self._settle(output)
        now_s, num_rows = self._clock(), output.num_steps * batch.num_tokens
        self._meter.add(now_s, mix.num_prompt_tokens, num_generated, output.gates, num_rows)
        self._planner.observe(output, mix, num_generated, now_s)

    def _forward(self, batch: Batch) -> StepOutput:
        """Run a step and pick what follows."""
        hidden_TD, gates = self._runner.forward(batch)
        return StepOutput(batch, self._pick(batch, hidden_TD), hidden_TD, gates)

    def _decode(self, batch: Batch, wake_file: int | None) -> StepOutput:
        """Run a burst, and note in its works how long it was."""
        works = batch.works
        rows = [self._answers[work.sequence].next_row() for work in works]
        stops = [row.stop_token_ids for row in rows]
        wishes = [burst_pick_row(row) for row in rows]
        most = works[0].num_steps
        picked, hidden_TD, gates = self._runner.decode(batch, wishes, stops, most, wake_file)
        num_steps = len(picked) // len(works)
        for work in works:
            work.repeat(num_steps)
        outcomes = burst_outcomes(rows, picked)
        return StepOutput(batch, outcomes, hidden_TD, gates, num_steps, is_burst=True)

    def _note_starts(self, works: list[Work]) -> None:
        for work in works:
            if work.sequence.has_started:
                continue
            progress = self._progress[work.sequence.request.id]
            if not progress.has_started:
                self._events.append(progress.start(work.sequence, self._clock()))

    def _pick(self, batch: Batch, hidden_TD: Tensor) -> list[list[Outcome]]:
        """Pick what follows each work that ends with its sequence's last token."""
        places: list[int] = []
        picks: list[Row] = []
        ends = []
        for work, start in zip(batch.works, batch.starts, strict=True):
            sequence = work.sequence
            if work.is_sampled and sequence.request.max_tokens:
                first = start + len(sequence.tokens) - 1 - work.start
                own = self._answers[sequence].rows(work)
                places += range(first, first + len(own))
                picks += own
            ends.append(len(picks))
        outcomes = pick(self._runner.logits(hidden_TD, places), picks) if picks else []
        return [outcomes[start:end] for start, end in pairwise((0, *ends))]

    def _settle(self, output: StepOutput) -> int:
        """Give sequences their tokens, report them, end what has ended; return tokens made."""
        batch = output.batch
        num_generated, now_s = 0, self._clock()
        for work, first_row, picked in zip(batch.works, batch.starts, output.outcomes, strict=True):
            sequence = work.sequence
            request = sequence.request
            progress = self._progress.get(request.id)
            if progress is None:
                # Another choice of its request failed a moment ago.
                continue
            answer = self._answers[sequence]
            try:
                self._events += progress.score_prompt(
                    work, first_row, output.hidden_TD, self._runner
                )
                judge = answer.judge_burst if output.is_burst else answer.judge
                verdict = judge(picked)
            except MoestroError as error:
                self._fail(request.id, error)
                continue
            if output.is_burst and not verdict.scores:
                # A grammar took none of a burst's guesses: as if it had not been.
                continue
            if sequence.drafts and answer.grammar is None:
                self._count_drafts(progress, sequence, verdict)
            row = first_row + len(sequence.tokens) - 1 - work.start
            self._scheduler.settle(work, [score.token_id for score in verdict.scores])
            if verdict.scores:
                if answer.forced:
                    # They are computed together, like drafts that are never wrong.
                    sequence.drafts = answer.forced.copy()
                stride = 1 if work.num_steps == 1 else batch.num_tokens
                rows = range(row, row + stride * len(verdict.scores), stride)
                self._events.append(progress.report(sequence, verdict, rows, output.gates, now_s))
                num_generated += len(verdict.scores)
            if verdict.finish or (work.is_sampled and not request.max_tokens):
                self._finish(sequence, progress)
        return num_generated

    def _count_drafts(self, progress: Progress, sequence: Sequence, verdict: Verdict) -> None:
        num_drafts, num_accepted = len(sequence.drafts), max(len(verdict.scores) - 1, 0)
        self._drafter.count(num_drafts, num_accepted)
        progress.num_drafted += num_drafts
        progress.num_accepted += num_accepted

    def _finish(self, sequence: Sequence, progress: Progress) -> None:
        del self._answers[sequence]
        if self._scheduler.finish(sequence):
            self._events.append(progress.end(self._clock()))
            del self._progress[sequence.request.id]

    def _fail(self, request_id: str, error: MoestroError) -> None:
        self._events.append(self._progress[request_id].fail(error))
        self.abort(request_id)
