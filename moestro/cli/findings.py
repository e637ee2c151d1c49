"""What a finished demo prints: a review's figures as tables and bars, and what to type next.

Next: demo.py; lm/review.py for what the figures are.
"""

from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from moestro.cli.progress import duration

_OURS = "this model"
_NAMES = {
    "gzip": "gzip -9, all of it as one stream",
    "xz": "xz -9e, all of it as one stream",
    "ngram": "order-5 n-gram model of the training text",
}
_BAR_WIDTH = 30
_BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def show(out: Path, review: dict[str, Any], summary: dict[str, Any]) -> None:
    """Print what a model learned, how its experts share the work, and three completions."""
    console = Console(highlight=False)
    at_budget = review["at_budget"]
    shown = review["held_out"] if at_budget is None else at_budget["held_out"]
    console.print()
    console.print(_predictions(review))
    console.print(_speed(summary))
    if shown["load"]:
        console.print(_experts(shown, review))
    for sample in review["samples"]:
        console.print(_completion(sample))
    # Commands must stay whole on narrow terminals, to be copied.
    console.print(_next(out, review), soft_wrap=True)


def _predictions(review: dict[str, Any]) -> Table:
    held_out = review["held_out"]
    title = f"Bits per byte of {held_out['bytes']:,} held-out bytes (lower is better)"
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    rows = {f"{_OURS}, each document by itself": held_out["bits_per_byte"]}
    if review["budget"] is not None:
        name = f"{_OURS} at {review['budget']:g} experts per token"
        rows[name] = review["at_budget"]["held_out"]["bits_per_byte"]
    rows |= {_NAMES[name]: value for name, value in review["baselines"].items()}
    longest = max(rows.values())
    for name, value in sorted(rows.items(), key=lambda row: row[1]):
        is_ours = name.startswith(_OURS)
        bar = _BLOCKS[-1] * max(1, round(_BAR_WIDTH * value / longest))
        style = "bold green" if is_ours else ""
        table.add_row(Text(name, style), Text(f"{value:.3f}", style), Text(bar, style or "dim"))
    return table


def _speed(summary: dict[str, Any]) -> Text:
    return Text(
        f"{summary['tokens']:,} tokens in {duration(summary['seconds'])},"
        f" {summary['tokens_per_s']:,.0f} tokens/s,"
        f" {summary['mfu']:.0%} of this machine's measured arithmetic\n",
        "dim",
    )


def _experts(shown: dict[str, Any], review: dict[str, Any]) -> Group:
    table = Table("layer", "load of each expert", "violation", "starved", box=None)
    table.title, table.title_justify = "How the experts share the work", "left"
    rows = zip(shown["load"], shown["max_violation"], shown["starved"], strict=True)
    for layer, (load, violation, idle) in enumerate(rows):
        mean = sum(load) / len(load)
        bars = "".join(_BLOCKS[min(8, round(4 * value / mean))] for value in load)
        table.add_row(str(layer), bars, f"{violation:.2f}", str(len(idle)))
    meanings = Text(
        "violation: the busiest expert's load over the mean, less 1; starved: experts under a tenth"
        " of the mean",
        "dim",
    )
    return Group(table, meanings, _budget(review), Text())


def _budget(review: dict[str, Any]) -> Text:
    if review["budget"] is None:
        return Text()
    histogram = review["at_budget"]["held_out"]["experts_histogram"]
    total = sum(histogram.values())
    shares = "  ".join(f"{k} experts: {n / total:.0%}" for k, n in histogram.items())
    got = review["at_budget"]["held_out"]["mean_experts"]
    return Text(f"asked for {review['budget']:g} experts per token, took {got:.3f}: {shares}")


def _completion(sample: dict[str, Any]) -> Panel:
    kind = "python" if sample["domain"] == "python" else "text"
    prompt = "\n".join(sample["prompt"].splitlines()[-8:])
    body = Group(
        Syntax(prompt, kind, background_color="default"),
        Text("what the model wrote:", "dim"),
        _indented(sample["completion"] or " ", kind),
        Text("what stands in the file:", "dim"),
        _indented(sample["reference"], kind),
    )
    return Panel(body, title=sample["name"], title_align="left")


def _indented(text: str, kind: str) -> Padding:
    return Padding(Syntax(text, kind, background_color="default"), (0, 0, 0, 2))


def _next(out: Path, review: dict[str, Any]) -> Text:
    budget = "" if review["budget"] is None else " --experts 2.5"
    lines = [
        f"Report: {out / 'report.html'} (opens in any browser, offline)",
        "",
        "What to type next:",
        f"  .venv/bin/moestro serve {out}     a page to complete in, and an API for your editor",
        f"  .venv/bin/moestro generate {out} 'def main(' --temperature 0.7{budget}",
        f"  .venv/bin/moestro xray {out} 'for i in range(10):' --out xray.html",
        f"  .venv/bin/moestro score {out} README.md",
        f"  .venv/bin/moestro inspect {out}",
        "  .venv/bin/moestro train configs/own-text.toml --set data.paths=PATH",
    ]
    return Text("\n".join(lines))
