"""`report.html`: one file that opens offline and shows what a run did and what its model can do.

Works at any time of a run: what has not been measured yet is left out. Knows records, no tensors.
Next: review_charts.py, charts.py, then report.html beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from moestro import files, settings
from moestro.lm.charts import training_charts
from moestro.lm.review_charts import expert_charts, quality_charts
from moestro.model.config import ModelConfig
from moestro.model.count import active_parameters, count_parameters

REPORT_FILE = "report.html"
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One headline number: what it is, its value, and what to hold against it."""

    label: str
    value: str
    note: str = ""


def write_report(
    folder: Path, rows: Sequence[Table], review: Table | None, config: Table | None = None
) -> Path:
    """Write a run's report from its metrics, review and configuration; any may be missing."""
    path = folder / REPORT_FILE
    files.write_atomic(path, render(folder.resolve().name, rows, review, config or {}).encode())
    return path


def render(name: str, rows: Sequence[Table], review: Table | None, config: Table) -> str:
    """Return the page; every text in it that is not ours is escaped."""
    first_layer = config.get("model", {}).get("first_k_dense_replace", 0)
    sections = {
        "Held-out text": quality_charts(review) if review else [],
        "Training": training_charts(rows),
        "Experts": expert_charts(review, first_layer) if review else [],
    }
    charts = {
        title: [chart.to_dict() for chart in part] for title, part in sections.items() if part
    }
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # The order of charts, of their choices and of domains is part of what they say.
    page.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = page.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(
        name=name,
        summary=_summary(config),
        figures=[*_review_figures(review), *_run_figures(rows)],
        sections=finite(charts),
        domains=_domain_rows(review),
        scope=_scope(review),
        samples=review["samples"] if review else [],
        settings=_flat(config),
        plotly_js=get_plotlyjs(),
    )


def finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replace nan and inf, which JSON does not have, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _summary(config: Table) -> str:
    if "model" not in config:
        return ""
    model = settings.build(ModelConfig, config["model"])
    total = count_parameters(model).total
    kind = f"{_short(total)} parameters"
    if model.first_k_dense_replace == model.num_hidden_layers:
        return f"dense, {kind}"
    most = model.num_experts_per_tok
    active = active_parameters(model, (model.fewest_experts + most) / 2)
    span = f"{model.fewest_experts} to {most}" if model.fewest_experts < most else f"{most}"
    chosen = f"{span} of {model.n_routed_experts} experts per token"
    return f"{kind}, {_short(active)} active; {chosen}"


def _review_figures(review: Table | None) -> list[Figure]:
    if review is None:
        return []
    whole = review["held_out"]
    note = ", ".join(f"{name} {_number(bits)}" for name, bits in _named(review["baselines"]))
    figures = [Figure("bits per byte, held out", _number(whole["bits_per_byte"]), note)]
    if review["at_budget"] is not None:
        few = review["at_budget"]["held_out"]
        note = f"measured mean {_number(few['mean_experts'])}"
        label = f"bits per byte at {review['budget']:g} experts"
        figures.append(Figure(label, _number(few["bits_per_byte"]), note))
    if whole["load"]:
        note = f"worst of {len(whole['load'])} layers; 0 is perfect"
        worst = max(whole["max_violation"])
        figures.append(Figure("load violation", _number(worst, 2), note))
        num_starved = sum(map(len, whole["starved"]))
        num_experts = sum(map(len, whole["load"]))
        note = f"of {num_experts}; under a tenth of the mean load"
        figures.append(Figure("starved experts", str(num_starved), note))
    return figures


def _run_figures(rows: Sequence[Table]) -> list[Figure]:
    steps = [row for row in rows if "loss" in row]
    if not steps:
        return []
    last = steps[-1]
    figures = [
        Figure("last loss", _number(last["loss"]), f"nats per token, step {last['step']:,}"),
        Figure("tokens read", _short(last["tokens"]), f"in {_duration(last['seconds'])}"),
    ]
    rate = last["tokens"] / last["seconds"] if last["seconds"] else None
    mfu = sum(row["mfu"] for row in steps) / len(steps)
    note = f"{_number(100 * mfu, 0)} % of this machine's peak (MFU)"
    figures.append(Figure("tokens per second", _short(rate) if rate else "-", note))
    return figures


def _domain_rows(review: Table | None) -> list[dict[str, str]]:
    if review is None:
        return []
    parts = [*review["domains"].items(), ("all", review["held_out"])]
    rows = [_domain_row(name, part) for name, part in parts]
    if (few := review["at_budget"]) is not None:
        for row, part in zip(rows, [*few["domains"].values(), few["held_out"]], strict=True):
            row[f"at {review['budget']:g} experts"] = _number(part["bits_per_byte"])
    return rows


def _domain_row(name: str, part: Table) -> dict[str, str]:
    row = {"domain": name}
    row |= {key: f"{part[key]:,}" for key in ("documents", "bytes", "tokens")}
    row["nats per token"] = _number(part["nats_per_token"])
    row["violation"] = _number(max(part["max_violation"], default=None), 2)
    row["bits per byte"] = _number(part["bits_per_byte"])
    return row


def _scope(review: Table | None) -> str:
    if review is None:
        return ""
    read, total = review["held_out"]["bytes"], review["held_out_bytes"]
    if read == total:
        return f"All {total:,} bytes held out from training."
    whole = ", ".join(
        f"{name} {_number(bits)}" for name, bits in _named(review["baselines_of_all"])
    )
    return (
        f"{read:,} of the {total:,} bytes held out from training, chosen by the documents' own"
        " hashes; gzip, xz and the 5-gram model were measured on the same ones. Gzip and xz learn"
        f" while they read and do better on more text{f'; on all of it: {whole}' if whole else ''}."
    )


def _named(baselines: Table) -> list[tuple[str, float]]:
    names = {"ngram": "5-gram"}
    return [(names.get(name, name), bits) for name, bits in baselines.items()]


def _flat(config: Table, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value not in ([], ()):
            text = str(value)
            flat[prefix + key] = text if len(text) <= 200 else f"{text[:200]} ..."
    return flat


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
