"""`moestro train`: a run from a configuration file, begun or gone on with.

Next: train/run.py, train/loop.py.
"""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moestro import settings
from moestro.cli import options
from moestro.cli.progress import TrainingProgress
from moestro.errors import CheckpointError

if TYPE_CHECKING:
    from moestro.train.loop import Trained
    from moestro.train.run import Run


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file; see configs/.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Run folder; resumed if it holds this run. Default: runs/CONFIG.",
            show_default=False,
        ),
    ] = None,
    assignments: Annotated[list[str] | None, options.settings_like("train.steps=100")] = None,
    as_json: options.Json = False,
) -> None:
    """Train a model, or go on training it.

    Example: [bold]moestro train configs/own-text.toml --set data.paths=src --out runs/mine[/bold]
    """
    from moestro.train.config import build_run_config
    from moestro.train.run import alone_in, open_run

    run_config = build_run_config(settings.override(settings.load(config), assignments or []))
    folder = out or Path("runs") / config.stem
    progress = TrainingProgress(run_config.train.steps)
    with alone_in(folder):
        trained, _ = run_to_end(open_run(run_config, folder, [progress]), progress)
    summary = summarize(folder, trained)
    if as_json:
        options.print_json(summary)
    else:
        print(
            f"{folder}: {summary['step']} steps, loss {summary['loss']:.4f};"
            f" open {folder / 'report.html'}"
        )


def run_to_end(run: "Run", progress: TrainingProgress) -> tuple["Trained", dict[str, Any]]:
    """Train to the last step under a display, then review the model and write its report."""
    from moestro.lm.review import review_run
    from moestro.train.loop import train as train_run

    with progress:
        trained = train_run(run, [progress])
    return trained, review_run(run, trained.model, say=progress.on_stage)


def summarize(folder: Path, trained: "Trained") -> dict[str, Any]:
    """Return what `moestro train --json` prints; CheckpointError where the figures are gone."""
    from moestro.train.metrics import METRICS_FILE, read_metrics

    steps = [row for row in read_metrics(folder) if "loss" in row]
    if not steps:
        raise CheckpointError(
            f"{folder / METRICS_FILE}: holds no steps, but the run is done: put the file back to"
            f" see its figures; the model is whole, {trained.checkpoint}"
        )
    last = steps[-1]
    return {
        "run": str(folder),
        "checkpoint": str(trained.checkpoint),
        "step": last["step"],
        "loss": last["loss"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        # Of all steps: the last one may have shared the machine with another program.
        "tokens_per_s": statistics.median(row["tokens_per_s"] for row in steps),
        "mfu": statistics.median(row["mfu"] for row in steps),
    }
