"""What `moestro policy report` prints: a report's figures side by side, and what they mean.

Knows the documents of policy/report.py. Next: policy.py.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from moestro.policy.measures import PAIR_FIGURES

_MEANINGS = {
    "pair": (
        "Below each figure its 95 % interval. apgr: the part of the gap between the two scores that"
        " is recovered, averaged over all shares of requests to the strong model; more is better."
        " cpt50 and cpt80: the share that recovers half and four fifths of it; strong_share_at_95:"
        " the share with 95 % of the strong model's score; less is better. oracle knows both scores"
        " beforehand."
    ),
    "pool": (
        "score: the mean, with its 95 % interval. oracle takes the best model for each row, random"
        " any. p: the chance of so large a gain if there were none."
    ),
}
# What is compared beside the policy, in the order in which people ask.
_BASELINES = ("prompt", "length", "random", "oracle")


def show(result: Mapping[str, Any]) -> None:
    """Print a report for people."""
    console = Console(highlight=False)
    console.print(_rows(result), markup=False)
    show_kind = _show_pair if result["kind"] == "pair" else _show_pool
    show_kind(result, console)
    console.print(_MEANINGS[result["kind"]], style="dim")


def _rows(result: Mapping[str, Any]) -> str:
    far = result["unfamiliar_share"]
    unlike = f"; {far:.1%} are unlike all that it learned from: these go to the strongest model"
    return f"{result['num_rows']:,} rows{unlike if far else ''}"


def _show_pair(result: Mapping[str, Any], console: Console) -> None:
    table = Table("", *PAIR_FIGURES, box=None, pad_edge=False)
    signals = {"this policy": result, **{n: result["baselines"].get(n) for n in _BASELINES}}
    for name, figures in signals.items():
        if figures is not None:
            label = "by prompt alone" if name == "prompt" else name
            table.add_row(label, *(_stacked(figures[figure]) for figure in PAIR_FIGURES))
    console.print(table)
    for which in ("weak", "strong"):
        model = result[which]
        console.print(f"{which}: {_inline(model['score'])}  {model['model']}", markup=False)
    if (point := result["at_threshold"]) is not None:
        share = point["strong_share"]
        console.print(
            f"as calibrated: {_inline(point['score'])}, with {_percent(share)} of requests to the"
            " strong model",
            markup=False,
        )


def _show_pool(result: Mapping[str, Any], console: Console) -> None:
    # A policy without prices counts every model as free.
    has_costs = any(model["cost"] > 0 for model in result["models"].values())
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    table.add_column("score")
    table.add_column("chosen", justify="right")
    if has_costs:
        table.add_column("USD per\n1,000 requests", justify="right")

    def add(name: str, score: str, chosen: str, cost: float | None) -> None:
        priced = "" if cost is None else f"{1000 * cost:.3g}"
        table.add_row(name, score, chosen, *([priced] if has_costs else []))

    add("this policy", _inline(result["accuracy"]), "", result["cost"]["value"])
    add("oracle", _inline(result["oracle"]), "", None)
    add("random", _inline(result["random"]), "", None)
    by_score = sorted(result["models"].items(), key=lambda item: -item[1]["score"])
    for name, model in by_score:
        add(name, f"{model['score']:.3f}", f"{result['shares'][name]:.1%}", model["cost"])
    console.print(table)
    best, gain = result["best_single"]["model"], result["gain_over_best_single"]
    text = f"over {best} alone: {_inline(gain, sign='+')}, p {result['p_value']:.2g}"
    if (share := result["cost_share_at_best_single"]) is not None:
        text += (
            f"; as good as that one for {share:.0%} of its cost, picked in hindsight on these rows"
        )
    console.print(text, markup=False)


def _stacked(figure: Mapping[str, float | None]) -> str:
    value, interval = _number(figure["value"]), _interval(figure)
    return f"{value}\n[dim]{interval}[/dim]" if interval else value


def _inline(figure: Mapping[str, Any], sign: str = "") -> str:
    interval = _interval(figure)
    return _number(figure["value"], sign) + (f" ({interval})" if interval else "")


def _percent(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"


def _interval(figure: Mapping[str, float | None]) -> str:
    low, high = figure["low"], figure["high"]
    return "" if low is None else f"{_number(low)} to {_number(high)}"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"
