"""A run on a terminal: one live line with what a person steers by; plain lines elsewhere.

Everything goes to standard error: standard output is for results. Next: train.py.
"""

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from moestro.train.metrics import StepMetrics

_PLAIN_EVERY_S = 10.0


class TrainingProgress:
    """Shows steps, tokens/s, loss, gradient norm, mean experts, worst violation, MFU, time left."""

    def __init__(self, num_steps: int | None = None) -> None:
        self.num_steps = num_steps
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            transient=True,
        )
        self._task: Any = None
        self._spoken_at = 0.0

    def __enter__(self) -> "TrainingProgress":
        """Take over the terminal."""
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        if self._console.is_terminal:
            self._progress.stop()

    def on_stage(self, text: str) -> None:
        """Say what is about to be done."""
        self._console.print(text, style="dim", markup=False)

    def on_step(self, metrics: StepMetrics) -> None:
        """Move the bar, or print a line now and then."""
        numbers = describe(metrics)
        if self._console.is_terminal:
            if self._task is None:
                self._task = self._progress.add_task("train", total=self.num_steps, numbers="")
            self._progress.update(self._task, completed=metrics.step, numbers=numbers)
        elif time.monotonic() - self._spoken_at > _PLAIN_EVERY_S or metrics.step == self.num_steps:
            self._spoken_at = time.monotonic()
            self._console.print(
                f"step {metrics.step}/{self.num_steps}  {numbers}", markup=False, soft_wrap=True
            )

    def on_evaluation(self, step: int, name: str, result: dict[str, Any]) -> None:
        """Print the held-out figure."""
        self._console.print(
            f"step {step}: {name} {result['bits_per_byte']:.3f} bits per byte", style="dim"
        )

    def on_checkpoint(self, path: Path) -> None:
        """Stay silent: checkpoints are routine."""


def describe(metrics: StepMetrics) -> str:
    """Put one step's numbers on one line."""
    parts = [f"loss {metrics.loss:.3f}", f"grad {metrics.grad_norm:.2f}"]
    if metrics.mean_experts is not None:
        parts.append(f"experts {metrics.mean_experts:.2f}")
    if metrics.max_violation is not None:
        parts.append(f"violation {metrics.max_violation:.2f}")
    parts += [
        f"{metrics.tokens_per_s:,.0f} tokens/s",
        f"MFU {metrics.mfu:.0%}",
        f"left {duration(metrics.eta_s)}",
    ]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Write seconds as a person says them: 45 s, 3:07, 2:15:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
