"""Arguments and flags that several commands share, so that each means the same everywhere.

Next: main.py.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Override a setting, like train.steps=100.",
        show_default=False,
    ),
]


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))
