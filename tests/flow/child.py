"""A training run in a process of its own, which a test can stop, kill or starve of disk.

The process says where it is through a pipe. Next: test_resume.py.
"""

import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from moestro.errors import MoestroError
from moestro.train.config import RunConfig, build_run_config
from moestro.train.loop import train
from moestro.train.metrics import StepMetrics
from moestro.train.run import open_run
from tests.builders import MICRO_SHAPE

_CONTEXT = multiprocessing.get_context("forkserver")
_TIMEOUT_S = 60
# What takes seconds to import, so that every process is forked from one that has it already.
_PRELOADED = ["torch.utils.tensorboard", "torch._dynamo", "safetensors.torch", "moestro.train.loop"]
STEPS = 12


@dataclass(frozen=True)
class Plan:
    """What a process does beside training: wait at a step, and write no file above a size."""

    pause_at: int | None = None
    max_file_bytes: int | None = None


class Child:
    """The process, and what it said last."""

    def __init__(self, process: ForkServerProcess, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe

    def hear(self) -> Any:
        """Wait for the next word: a step's number, or how the run ended."""
        assert self.pipe.poll(_TIMEOUT_S), "the process said nothing"
        return self.pipe.recv()

    def go_on(self) -> None:
        """Let a paused process continue."""
        self.pipe.send(None)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.process.kill()
        self.process.join(_TIMEOUT_S)


@contextmanager
def started(config: RunConfig, folder: Path, plan: Plan | None = None) -> Iterator[Child]:
    """Start a process that trains; it is gone when the block ends."""
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_main, args=(config, folder, plan or Plan(), theirs))
    process.start()
    theirs.close()
    try:
        yield Child(process, ours)
    finally:
        process.kill()
        process.join(_TIMEOUT_S)
        process.close()
        ours.close()


def finish(config: RunConfig, folder: Path) -> None:
    """Train in a process of its own to the last step."""
    with started(config, folder) as child:
        assert child.hear() == "finished"


def micro_config(text: Path, *, every_steps: int = 4, steps: int = STEPS) -> RunConfig:
    """Build the smallest run that has every part: MTP, budget, balance, Muon, bfloat16 excepted."""
    model = MICRO_SHAPE | {"vocab_size": 280}
    checkpoint = {"every_steps": every_steps, "keep": 2}
    sizes = {"steps": steps, "seq_len": 24, "batch_size": 4, "micro_batch_size": 2}
    return build_run_config(
        {
            "model": model,
            "data": {"paths": [str(text)], "held_out": 0.2, "fim_rate": 0.3},
            "train": sizes | {"dtype": "float32", "device": "cpu", "checkpoint": checkpoint},
        }
    )


def _main(config: RunConfig, folder: Path, plan: Plan, pipe: Connection) -> None:
    try:
        train(open_run(config, folder), [_Reporter(plan, pipe)])
    except MoestroError as error:
        pipe.send((type(error).__name__, str(error)))
    else:
        pipe.send("finished")


class _Reporter:
    """Pauses the run where it was told to, and takes the disk away from then on."""

    def __init__(self, plan: Plan, pipe: Connection) -> None:
        self.plan = plan
        self.pipe = pipe

    def on_stage(self, text: str) -> None:
        pass

    def on_step(self, metrics: StepMetrics) -> None:
        if metrics.step != self.plan.pause_at:
            return
        self.pipe.send(metrics.step)
        self.pipe.recv()
        if self.plan.max_file_bytes is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.plan.max_file_bytes, hard))

    def on_evaluation(self, step: int, name: str, result: dict[str, Any]) -> None:
        pass

    def on_checkpoint(self, path: Path) -> None:
        pass
