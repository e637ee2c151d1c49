"""`moestro xray`: each token of a text with the experts it visited. Next: lm/xray.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from moestro.cli import options

if TYPE_CHECKING:
    from moestro.lm.xray import TokenView

# From few experts to many, readable on dark and on light terminals.
_STYLES = (
    "black on grey82",
    "black on light_sky_blue1",
    "black on light_goldenrod2",
    "black on salmon1",
)


def xray(
    model: options.Model,
    text: Annotated[str, typer.Argument(help="Text to look at.")],
    experts: Annotated[
        float | None,
        typer.Option(
            "--experts",
            help="Mean routed experts per token; midway between fewest and most if left out.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Also write a page to click through.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show each token with the experts it visited, coloured by how many it took.

    Example: [bold]moestro xray runs/demo "for i in range(10):" --experts 3 --out xray.html[/bold]
    """
    from moestro.lm import xray as views
    from moestro.lm.language_model import load
    from moestro.lm.review import default_budget

    lm = load(model)
    tokens = views.xray(lm, text, default_budget(lm.config) if experts is None else experts)
    if out is not None:
        views.write_page(tokens, out, lm.config.first_k_dense_replace)
    if as_json:
        options.print_json({"tokens": [token.to_dict() for token in tokens]})
        return
    console = Console(highlight=False)
    if console.color_system is None or console.no_color:
        _list(console, tokens)
    else:
        _paint(console, tokens, lm.config.fewest_experts, lm.config.num_experts_per_tok)
    if out is not None:
        console.print(f"page: {out}", markup=False)


def _list(console: Console, tokens: Sequence["TokenView"]) -> None:
    """Say in numbers what there are no colours for, as in a file or a pipe."""
    for token in tokens:
        mean = "-" if token.mean_experts is None else f"{token.mean_experts:.2f}"
        console.print(f"{mean:>5}  {token.text!r}", markup=False, soft_wrap=True)
    console.print("experts by token, mean over layers")


def _paint(console: Console, tokens: Sequence["TokenView"], fewest: int, most: int) -> None:
    line = Text()
    for token in tokens:
        line.append(token.text, _style(token.mean_experts, fewest, most))
    console.print(line)
    legend = Text("fewest to most experts, mean over layers: ")
    for share, style in enumerate(_STYLES):
        legend.append(f" {fewest + share * (most - fewest) / (len(_STYLES) - 1):.1f} ", style)
    console.print(legend)


def _style(mean_experts: float | None, fewest: int, most: int) -> str:
    if mean_experts is None or fewest == most:
        return ""
    share = (mean_experts - fewest) / (most - fewest)
    return _STYLES[min(len(_STYLES) - 1, round(share * (len(_STYLES) - 1)))]
