"""Training runs for benchmarks: the same data, an evaluation on the same held-out text, results as
JSON.

Every benchmark of training goes through here, so that their figures can be compared. Knows no
claim: those are in the scripts beside it.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moestro import settings
from moestro.data.corpus import Document
from moestro.model.presets import dense_twin
from moestro.ops.memory import keep_freed_memory
from moestro.text.tokenizer import Tokenizer
from moestro.train.config import RunConfig, build_run_config
from moestro.train.evaluate import Evaluation, TokenDocument, evaluate
from moestro.train.loop import build_stepper
from moestro.train.run import CONFIG_FILE, Run, load_run, open_run, settle_machine
from moestro.train.step import Stepper, StepResult

RESULTS = Path(__file__).parent / "results"
DATA = Path("runs/benchmark-data")
SETTINGS = {
    "data": {"paths": ["python"], "held_out": 0.05},
    "tokenizer": {"sample_bytes": 4_000_000},
    "model": {"num_nextn_predict_layers": 0},
    "train": {"seq_len": 512, "batch_size": 4},
}


@dataclass(frozen=True)
class Point:
    """Where a run stood after `tokens` tokens and `seconds` of training, evaluation not counted."""

    tokens: int
    seconds: float
    nats_per_token: float


@dataclass
class Outcome:
    """One finished run: its curve on held-out text, and the trained model."""

    curve: list[Point] = field(default_factory=list)
    steps: list[StepResult] = field(default_factory=list)
    stepper: Stepper | None = None


def prepare(name: str, tables: Mapping[str, Any]) -> Run:
    """Make data once for benchmarks of one vocabulary: this machine's Python library.

    Only data and tokenizer are kept; all other settings are today's.
    """
    config, folder = build_run_config(settings.merge(SETTINGS, tables)), DATA / name
    if not (folder / CONFIG_FILE).exists():
        return open_run(config, folder, [])
    run = load_run(folder)
    if (run.config.data, run.config.tokenizer) != (config.data, config.tokenizer):
        sys.exit(f"{folder}: holds other data: remove it")
    return replace(run, config=config)


def held_out(run: Run, max_bytes: int, domain: str | None = None) -> list[TokenDocument]:
    """Return tokens of held-out documents, evenly from all, up to about `max_bytes`."""
    documents = [d for d in run.data.held_out if domain in (None, d.domain)]
    return encode(documents, run.tokenizer, max_bytes)


def encode(documents: list[Document], tokenizer: Tokenizer, max_bytes: int) -> list[TokenDocument]:
    """Take a piece of each document, from anywhere in it; all have a share of `max_bytes`."""
    share = max(2_000, max_bytes // max(1, len(documents)))
    kept, total = [], 0
    for document in sorted(documents, key=lambda d: d.draw("benchmark", 0)):
        if total >= max_bytes:
            break
        data = document.text.encode()
        start = int(document.draw("piece", 0) * max(0, len(data) - share))
        text = data[start : start + share].decode(errors="ignore")
        kept.append(TokenDocument(tokenizer.encode(text), len(text.encode())))
        total += kept[-1].num_bytes
    return kept


def configure(run: Run, tables: Mapping[str, Any], dense_experts: int | None = None) -> RunConfig:
    """Lay a variant over the run's configuration; `dense_experts` asks for the dense twin."""
    merged = settings.merge(settings.to_tables(run.config), tables)
    config = settle_machine(build_run_config(merged))
    if dense_experts is not None:
        config = replace(config, model=dense_twin(config.model, dense_experts))
    return config


def train_once(
    run: Run,
    config: RunConfig,
    documents: list[TokenDocument],
    num_points: int = 1,
    budget: float | None = None,
) -> Outcome:
    """Train a model from its seed to its last step, evaluating `num_points` times on the way."""
    keep_freed_memory()
    stepper = build_stepper(config)
    loader = replace(run, config=config).loader()
    outcome = Outcome(stepper=stepper)
    seconds, steps = 0.0, config.train.steps
    marks = {round(steps * (i + 1) / num_points) for i in range(num_points)}

    def windows_of(step: int) -> Tensor:
        return torch.from_numpy(loader.batch(step)).to(config.train.device)

    for step in range(steps):
        window_BW = windows_of(step)
        start = time.perf_counter()
        outcome.steps.append(stepper.run(step, window_BW))
        if step + 1 == steps:
            stepper.settle(windows_of)
        seconds += time.perf_counter() - start
        if step + 1 in marks:
            tokens = (step + 1) * config.train.batch_size * config.train.seq_len
            nats = evaluate_at(run, stepper, documents, budget).nats_per_token
            outcome.curve.append(Point(tokens, seconds, nats))
    return outcome


def evaluate_at(
    run: Run, stepper: Stepper, documents: list[TokenDocument], budget: float | None
) -> Evaluation:
    """Evaluate the model as it stands at a budget; None takes all experts."""
    return evaluate(stepper.model, documents, start_id=run.tokenizer.bos_id, budget=budget)


def write_result(name: str, payload: Mapping[str, Any]) -> Path:
    """Write a benchmark's JSON with what is needed to judge and to repeat it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"about": about()} | dict(payload), indent=1) + "\n")
    return path


def _without_folders(argument: str) -> str:
    # Where a file lies on this machine helps nobody to repeat it.
    return Path(argument).name if Path(argument).is_absolute() else argument


def about() -> dict[str, Any]:
    """Return machine, versions, commit and command."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "command": " ".join(["python", *map(_without_folders, sys.argv)]),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "moestro")},
    }


@contextmanager
def said(text: str) -> Iterator[None]:
    """Say what is being done and how long it took, on standard error."""
    print(f"{text} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    print(f"{text}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    names = [line for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.processor()
