"""Arguments and flags that several commands share, so that each means the same everywhere.

Next: main.py.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

Model = Annotated[
    Path,
    typer.Argument(
        help="A run folder, a checkpoint or Hugging Face folder, or a .gguf file.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Experts = Annotated[
    float | None,
    typer.Option(
        "--experts",
        help="Mean routed experts per token; all of them if left out.",
        show_default=False,
    ),
]


def settings_like(example: str) -> Any:  # noqa: ANN401 (typer has no public type for it)
    """Return `--set`, which overrides a command's settings, with one of them as its example."""
    return typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help=f"Override a setting, like {example}.",
        show_default=False,
    )


def say(stage: str) -> None:
    """Say on standard error what is being done: seconds without a sign look like a fault."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(stage, style="dim", markup=False)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))
