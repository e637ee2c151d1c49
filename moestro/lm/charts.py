"""The charts of a run's training, as data for plotly.js; the page adds colors for dark and light.

Reads rows of `metrics.jsonl`. Next: review_charts.py, report.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Table = Mapping[str, Any]

# More points than a screen has columns show nothing more, and make a long run's page heavy.
MAX_POINTS = 1500


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture with what to look for. `choices`: named lists of traces; the reader picks one."""

    name: str
    title: str
    hint: str
    choices: dict[str, list[dict[str, Any]]]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 320

    def to_dict(self) -> dict[str, Any]:
        """Return what the page's script reads."""
        return asdict(self)


def training_charts(rows: Rows) -> list[Chart]:
    """Draw a run's curves over its steps; those without numbers are left out."""
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "evaluation" in row]
    curves = [_loss(steps), _gradient(steps), _experts(steps), _speed(steps)] if steps else []
    found = [*curves, _evaluations(evaluations)]
    return [chart for chart in found if chart is not None]


def thin(values: Sequence[float | None], choose: Callable[[list[float]], float]) -> list[Any]:
    """Reduce a curve to at most MAX_POINTS, each standing for a stretch of neighbors."""
    size = -(-len(values) // MAX_POINTS)
    if size <= 1:
        return [_rounded(value) for value in values]
    stretches = [values[start : start + size] for start in range(0, len(values), size)]
    kept = [[x for x in each if x is not None and math.isfinite(x)] for each in stretches]
    return [_rounded(choose(each)) if each else None for each in kept]


def mean(values: list[float]) -> float:
    """Average a stretch of a curve."""
    return sum(values) / len(values)


def line(rows: Rows, key: str, label: str, **more: str) -> dict[str, Any]:
    """Draw one number of each row over the steps; peaks of spiky numbers survive thinning."""
    choose = max if key in ("grad_norm", "max_violation") else mean
    trace = {
        "type": "scatter",
        "mode": "lines" if len(rows) > 2 else "lines+markers",
        "name": label,
        "x": thin([row["step"] for row in rows], max),
        "y": thin([row.get(key) for row in rows], choose),
        "line": {"width": 1.6},
    }
    return trace | more


def axes(
    x: str, y: str, second: str | None = None, **more: str | bool | dict[str, Any]
) -> dict[str, Any]:
    """Name a chart's axes; `second` is the one on the right."""
    layout: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    if second is not None:
        layout["yaxis2"] = {
            "title": {"text": second},
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "tickmode": "auto",
            "ticklabelstandoff": 5,
            "rangemode": "tozero",
        }
    return layout | more


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _has(rows: Rows, key: str) -> bool:
    return any(row.get(key) is not None for row in rows)


def _loss(steps: Rows) -> Chart:
    traces = [line(steps, "loss", "next token")]
    if _has(steps, "mtp_loss"):
        traces.append(line(steps, "mtp_loss", "token after it (MTP)"))
    return Chart(
        name="loss",
        title="Training loss",
        hint="Should fall quickly, then ever more slowly; a jump that stays is a run gone wrong.",
        choices={"": traces},
        layout=axes("step", "loss (nats per token)"),
    )


def _gradient(steps: Rows) -> Chart:
    rate = line(steps, "learning_rate", "learning rate", yaxis="y2")
    rate["line"] = {"width": 1.6, "dash": "dot"}
    return Chart(
        name="gradient",
        title="Gradient norm and learning rate",
        hint="The norm should stay near one level while the rate is constant;"
        " rising peaks come before trouble.",
        choices={"": [line(steps, "grad_norm", "gradient norm"), rate]},
        layout=axes("step", "gradient norm", "learning rate"),
    )


def _experts(steps: Rows) -> Chart | None:
    if not _has(steps, "mean_experts"):
        return None
    traces = [line(steps, "mean_experts", "mean experts")]
    if _has(steps, "max_violation"):
        traces.append(line(steps, "max_violation", "load violation", yaxis="y2"))
    return Chart(
        name="experts",
        title="Experts per token and worst load violation",
        hint="Violation is the busiest expert's load over the mean, minus 1, in the worst layer:"
        " it should come down early and stay down.",
        choices={"": traces},
        layout=axes("step", "experts per token", "load violation"),
    )


def _speed(steps: Rows) -> Chart | None:
    if not _has(steps, "tokens_per_s"):
        return None
    traces = [line(steps, "tokens_per_s", "tokens/s")]
    if _has(steps, "mfu"):
        share = [None if row.get("mfu") is None else 100 * row["mfu"] for row in steps]
        rows = [
            {"step": row["step"], "mfu": value} for row, value in zip(steps, share, strict=True)
        ]
        traces.append(line(rows, "mfu", "share of peak", yaxis="y2"))
    layout = axes("step", "tokens per second", "share of the machine's peak (%)")
    layout["yaxis"]["rangemode"] = "tozero"
    return Chart(
        name="speed",
        title="Speed",
        hint="Should be level; a step down that stays: something else wants this machine.",
        choices={"": traces},
        layout=layout,
    )


def _evaluations(rows: Rows) -> Chart | None:
    if not rows:
        return None
    names = list(dict.fromkeys(row["evaluation"] for row in rows))
    traces = []
    for name in names:
        own = [row for row in rows if row["evaluation"] == name]
        traces.append(line(own, "bits_per_byte", name, mode="lines+markers"))
    return Chart(
        name="evaluations",
        title="Held-out text during training",
        hint="Should fall with the training loss; where it turns up, the model learns by heart.",
        choices={"": traces},
        layout=axes("step", "bits per byte"),
    )
