"""READ FIRST: the training loop. Batches in, checkpoints and metrics out; stops, resumes anywhere.

Knows no terminal: whoever watches is an `Observer`.
Next: step.py for one step, resume.py for checkpoints.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch

from moestro.errors import Interrupted, StorageError
from moestro.model.count import training_flops_per_token
from moestro.model.induction import plant_induction
from moestro.model.initialize import initialize
from moestro.model.model import Transformer
from moestro.ops.machine import measure_peak
from moestro.ops.memory import keep_freed_memory
from moestro.train.config import RunConfig
from moestro.train.evaluate import evaluate
from moestro.train.metrics import MetricsLog, Observer, StepMetrics
from moestro.train.resume import Progress, resume, save_checkpoint
from moestro.train.run import Run
from moestro.train.step import Stepper, StepResult
from moestro.weights.find import latest_checkpoint

# Enough to see a trend; a review at the end reads far more.
_EVALUATION_BYTES = 64_000


@dataclass(frozen=True)
class Trained:
    """A finished run: the model in memory, where it lies, and the last step's numbers."""

    model: Transformer
    checkpoint: Path
    last: StepMetrics | None


def train(run: Run, observers: Sequence[Observer]) -> Trained:
    """Train until the configured number of steps, from the newest checkpoint if there is one."""
    keep_freed_memory()
    stepper = build_stepper(run.config)
    found = latest_checkpoint(run.folder)
    progress = resume(found, stepper) if found else Progress()
    settings = run.config.train
    log = MetricsLog(run.folder, progress.step, settings.log_every, last=settings.steps)
    try:
        trained = _Loop(run, stepper, progress, [log, *observers]).go()
    except BaseException:
        # A disk that is full refuses the log as well: what went wrong first is what is told.
        with suppress(StorageError):
            log.close()
        raise
    log.close()
    return trained


def build_stepper(config: RunConfig) -> Stepper:
    """Make a freshly initialized model and its optimizers on the configured device."""
    model = Transformer(config.model, compute_dtype=getattr(torch, config.train.dtype))
    initialize(model, config.train.seed)
    if config.train.is_induction_planted:
        plant_induction(model, config.train.seed)
    return Stepper(model.to(config.train.device), config.train)


class _Loop:
    def __init__(
        self, run: Run, stepper: Stepper, progress: Progress, observers: Sequence[Observer]
    ) -> None:
        self.run = run
        self.stepper = stepper
        self.progress = progress
        self.observers = observers
        self.loader = run.loader()
        self.peak_flops = measure_peak(run.config.train.device).flops
        self.last: StepMetrics | None = None

    def go(self) -> Trained:
        settings = self.run.config.train
        saved_at = time.monotonic()
        with _stop_requests() as is_stopping:
            while self.progress.step < settings.steps:
                self._step(self._windows_of(self.progress.step))
                if self.progress.step == settings.steps:
                    self.stepper.settle(self._windows_of)
                self._evaluate_if_due()
                if is_stopping():
                    path = self._save()
                    raise Interrupted(
                        f"stopped after step {self.progress.step}: saved {path};"
                        " the same command goes on"
                    )
                if self._is_checkpoint_due(time.monotonic() - saved_at):
                    self._save()
                    saved_at = time.monotonic()
        return Trained(self.stepper.model, self._save(), self.last)

    def _windows_of(self, step: int) -> torch.Tensor:
        return torch.from_numpy(self.loader.batch(step)).to(self.run.config.train.device)

    def _step(self, window_BW: torch.Tensor) -> None:
        start = time.perf_counter()
        result = self.stepper.run(self.progress.step, window_BW)
        seconds = time.perf_counter() - start
        tokens = window_BW.shape[0] * self.run.config.train.seq_len
        self.progress = replace(
            self.progress,
            step=self.progress.step + 1,
            tokens=self.progress.tokens + tokens,
            seconds=self.progress.seconds + seconds,
        )
        self.last = self._metrics(result, tokens / seconds)
        for observer in self.observers:
            observer.on_step(self.last)

    def _evaluate_if_due(self) -> None:
        every, step = self.run.config.train.evaluate_every, self.progress.step
        if not every or step % every:
            return
        sample = self.run.held_out_sample(_EVALUATION_BYTES)
        found = evaluate(self.stepper.model, sample, start_id=self.run.tokenizer.bos_id)
        for observer in self.observers:
            observer.on_evaluation(step, "held_out", found.to_dict())

    def _metrics(self, result: StepResult, tokens_per_s: float) -> StepMetrics:
        config = self.run.config
        experts = result.mean_experts or 0.0
        flops = training_flops_per_token(config.model, config.train.seq_len, experts)
        done = self.progress
        return StepMetrics(
            step=done.step,
            tokens=done.tokens,
            seconds=done.seconds,
            loss=result.loss,
            mtp_loss=result.mtp_loss,
            grad_norm=result.grad_norm,
            learning_rate=result.learning_rate,
            mean_experts=result.mean_experts,
            max_violation=max(result.violations, default=None),
            tokens_per_s=tokens_per_s,
            mfu=flops * tokens_per_s / self.peak_flops,
            eta_s=(config.train.steps - done.step) * done.seconds / done.step,
        )

    def _is_checkpoint_due(self, since_last_s: float) -> bool:
        settings = self.run.config.train.checkpoint
        if settings.every_steps is not None:
            return self.progress.step % settings.every_steps == 0
        return since_last_s >= settings.every_s

    def _save(self) -> Path:
        keep = self.run.config.train.checkpoint.keep
        path = save_checkpoint(
            self.run.folder, self.stepper, self.run.tokenizer, self.progress, keep
        )
        for observer in self.observers:
            observer.on_checkpoint(path)
        return path


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question that the loop asks between steps."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
