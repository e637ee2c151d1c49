"""`moestro score`: how well a model predicts files it has not seen. Next: train/evaluate.py."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from moestro.cli import options


def score(
    model: options.Model,
    paths: Annotated[
        list[Path], typer.Argument(help="Files or folders of text.", show_default=False)
    ],
    experts: options.Experts = None,
    as_json: options.Json = False,
) -> None:
    """Measure how well a model predicts text: bits per byte, and how its experts share the work.

    Example: [bold]moestro score runs/demo src/ --experts 2.5[/bold]
    """
    from moestro.data.config import DataConfig
    from moestro.data.corpus import read_corpus
    from moestro.lm.language_model import load

    corpus = read_corpus(DataConfig(paths=tuple(map(str, paths)), min_bytes=1))
    options.say(f"scoring {sum(corpus.stats.num_bytes.values()):,} bytes")
    result = load(model).score([document.text for document in corpus.documents], experts).to_dict()
    if as_json:
        options.print_json(result | {"left_out": corpus.stats.left_out})
        return
    table = Table(show_header=False, box=None)
    for name in ("documents", "bytes", "tokens", "nats_per_token", "bits_per_byte", "mean_experts"):
        value = result[name]
        table.add_row(
            name,
            f"{value:.4f}"
            if isinstance(value, float)
            else f"{value:,}"
            if value is not None
            else "-",
        )
    table.add_row("experts_histogram", str(result["experts_histogram"]))
    violations = result["max_violation"]
    assert isinstance(violations, list)
    table.add_row("max_violation", "  ".join(f"{value:.2f}" for value in violations))
    Console().print(table)
    options.say(f"left out: {corpus.stats.describe_left_out()}")
