"""`moestro demo`: the whole of Moestro in one command, on text that every machine with Python has.

Next: train.py, which does the same for text of one's own.
"""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moestro import settings
from moestro.cli import options
from moestro.cli.findings import show
from moestro.cli.progress import TrainingProgress
from moestro.cli.train import run_to_end, summarize
from moestro.errors import ConfigError

if TYPE_CHECKING:
    from moestro.train.config import RunConfig
    from moestro.train.run import Run

log = logging.getLogger(__name__)

_TABLES: dict[str, Any] = {
    "preset": "demo",
    "data": {"paths": ["python"], "held_out": 0.05, "fim_rate": 0.2},
    "tokenizer": {"sample_bytes": 4_000_000},
    "train": {"seq_len": 512, "batch_size": 4},
}
_TRIAL_STEPS = 4
_TRIAL_S = 3.0
_FEWEST_STEPS = 20
# As many as configs/demo.toml takes.
_ENOUGH_STEPS = 500


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; a demo that was stopped goes on.")
    ] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option("--minutes", help="How long to train.")] = 4.0,
    assignments: Annotated[
        list[str] | None, options.settings_like("train.optimizer.kind=adamw")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Train a small sparse model on this machine's own Python library and show what it learned.

    Example: [bold]moestro demo --minutes 10 --out runs/ten[/bold]
    """
    from moestro.train.run import CONFIG_FILE, alone_in

    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes is {minutes}: it must be a number above 0")
    progress = TrainingProgress()
    with alone_in(out):
        if (out / CONFIG_FILE).exists():
            progress.on_stage(f"going on with {out}")
            run = _reopen(out, assignments or [])
        else:
            run = _make_run(out, minutes, assignments or [], progress)
        progress.num_steps = run.config.train.steps
        trained, review = run_to_end(run, progress)
    summary = summarize(out, trained)
    if as_json:
        options.print_json(_result(out, review) | summary)
    else:
        show(out, review, summary)


def _make_run(
    out: Path, minutes: float, assignments: list[str], progress: TrainingProgress
) -> "Run":
    from moestro.train.config import build_run_config
    from moestro.train.run import open_run, settle_machine

    tables = settings.override(_TABLES, assignments)
    config = build_run_config(tables)
    if "steps" not in tables["train"]:
        progress.on_stage("measuring this machine")
        seconds = _seconds_per_step(settle_machine(config))
        steps = max(_FEWEST_STEPS, round(60 * minutes / seconds))
        if steps < _ENOUGH_STEPS:
            _warn_of_few(steps, minutes, seconds)
        config = replace(config, train=replace(config.train, steps=steps))
    return open_run(config, out, [progress])


def _warn_of_few(steps: int, minutes: float, seconds_per_step: float) -> None:
    enough = math.ceil(_ENOUGH_STEPS * seconds_per_step / 60)
    log.warning(
        "this machine is slow or busy: it takes %d steps in %g min, which teach a model little;"
        " for %d: moestro demo --minutes %d --out runs/longer",
        steps,
        minutes,
        _ENOUGH_STEPS,
        enough,
    )


def _reopen(out: Path, assignments: list[str]) -> "Run":
    from moestro.train.config import RunConfig
    from moestro.train.run import load_run, open_run

    run = load_run(out)
    if not assignments:
        return run
    tables = settings.override(settings.to_tables(run.config), assignments)
    return open_run(settings.build(RunConfig, tables), out)


def _seconds_per_step(config: "RunConfig") -> float:
    """Time a few steps of the very model on random tokens."""
    import torch

    from moestro.train.loop import build_stepper
    from moestro.train.loss import window_length

    stepper = build_stepper(config)
    shape = (config.train.batch_size, window_length(stepper.model, config.train.seq_len))
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(config.model.vocab_size, shape, generator=generator)
    seconds: list[float] = []
    while len(seconds) < _TRIAL_STEPS or sum(seconds) < _TRIAL_S:
        start = time.perf_counter()
        stepper.run(0, windows.to(config.train.device))
        seconds.append(time.perf_counter() - start)
    # Not the median: another program that is busy for a second must not shorten the whole run.
    return sorted(seconds)[len(seconds) // 4]


def _result(out: Path, review: dict[str, Any]) -> dict[str, Any]:
    """Return what `moestro demo --json` prints: figures at the budget that the demo shows."""
    at_budget = review["at_budget"]
    shown = review["held_out"] if at_budget is None else at_budget["held_out"]
    names = ("bits_per_byte", "mean_experts", "max_violation", "starved")
    return {
        "run": str(out),
        "budget": review["budget"],
        **{name: shown[name] for name in names},
        "bits_per_byte_all_experts": review["held_out"]["bits_per_byte"],
        "baselines": review["baselines"],
        "report": str(out / "report.html"),
    }
