"""What is measured in training, in which unit, and where it is kept.

`metrics.jsonl` has one object per logged step, TensorBoard the same numbers. Next: loop.py.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from moestro import files

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"


@dataclass(frozen=True)
class StepMetrics:
    """One step: losses in nats per token, `mfu` as a share of the machine's measured arithmetic."""

    step: int
    tokens: int
    seconds: float
    loss: float
    mtp_loss: float | None
    grad_norm: float
    learning_rate: float
    mean_experts: float | None
    max_violation: float | None
    tokens_per_s: float
    mfu: float
    eta_s: float


class Observer(Protocol):
    """Someone who watches a run: the log on disk, a progress bar, a test."""

    def on_stage(self, text: str) -> None:
        """Hear what is about to be done, in words for a person."""

    def on_step(self, metrics: StepMetrics) -> None:
        """See one step's numbers."""

    def on_evaluation(self, step: int, name: str, result: dict[str, Any]) -> None:
        """See how well the model predicts held-out text."""

    def on_checkpoint(self, path: Path) -> None:
        """Learn where the newest checkpoint lies."""


class MetricsLog:
    """Writes `metrics.jsonl` and TensorBoard events into a run folder, continuing after `step`.

    Every `every`-th step is logged, and the `last` one whatever its number.
    """

    def __init__(self, run: Path, step: int, every: int = 1, last: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._every, self._last = every, last
        path = run / METRICS_FILE
        _keep_until(path, step)
        self._path, self._events = path, run / EVENTS_FOLDER
        with files.storage_errors(run):
            # Unbuffered: what a full disk refused must not be written again by `close`.
            self._file = path.open("ab", buffering=0)
            self._board = SummaryWriter(str(self._events), purge_step=step + 1)

    def on_stage(self, text: str) -> None:
        """Ignore words."""

    def on_step(self, metrics: StepMetrics) -> None:
        """Write one line and its scalars."""
        if metrics.step % self._every and metrics.step != self._last:
            return
        values = asdict(metrics)
        self._write(values)
        with files.storage_errors(self._events):
            for name, value in values.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(f"train/{name}", value, metrics.step)

    def on_evaluation(self, step: int, name: str, result: dict[str, Any]) -> None:
        """Write the evaluation as a line of its own."""
        self._write({"step": step, "evaluation": name, **result})
        with files.storage_errors(self._events):
            self._board.add_scalar(f"{name}/bits_per_byte", result["bits_per_byte"], step)

    def on_checkpoint(self, path: Path) -> None:
        """Ignore it: the folder speaks for itself."""

    def close(self) -> None:
        """Bring everything to disk."""
        self._file.close()
        with files.storage_errors(self._events):
            self._board.close()

    def _write(self, values: dict[str, Any]) -> None:
        with files.storage_errors(self._path):
            self._file.write(f"{json.dumps(values)}\n".encode())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl`; lines that are no step's, as a power cut leaves them, are left out."""
    path = run / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        # Broken JSON and text that is not UTF-8 are both ValueErrors.
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def _keep_until(path: Path, step: int) -> None:
    # Steps after the checkpoint were lost with the process and will be run and logged again.
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    files.write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
