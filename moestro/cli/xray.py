"""`moestro xray`: each token of a text with the experts it visited. Next: lm/xray.py."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from moestro.cli import options

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
    fewest, most = lm.config.fewest_experts, lm.config.num_experts_per_tok
    line = Text()
    for token in tokens:
        line.append(token.text, _style(token.mean_experts, fewest, most))
    console = Console(highlight=False)
    console.print(line)
    legend = Text("fewest to most experts, mean over layers: ")
    for share, style in enumerate(_STYLES):
        legend.append(f" {fewest + share * (most - fewest) / (len(_STYLES) - 1):.1f} ", style)
    console.print(legend)
    if out is not None:
        console.print(f"page: {out}", markup=False)


def _style(mean_experts: float | None, fewest: int, most: int) -> str:
    if mean_experts is None or fewest == most:
        return ""
    share = (mean_experts - fewest) / (most - fewest)
    return _STYLES[min(len(_STYLES) - 1, round(share * (len(_STYLES) - 1)))]
