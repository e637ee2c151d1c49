"""The commands and flags that `moestro` has, one a line, as flags.txt holds them.

Knows the shape of a command tree, not what any command does. To accept a change of the list:

    .venv/bin/python -m tests.rules.flag_list > tests/rules/flags.txt

Next: test_flags.py.
"""

from typing import Any

import typer.main


def list_flags(app: typer.Typer) -> list[str]:
    """List every command with its arguments and flags, sorted."""
    return sorted(_walk(typer.main.get_command(app), "moestro"))


def _walk(command: Any, name: str) -> list[str]:
    lines = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            lines.append(f"{name} {parameter.name.upper()}{'...' if parameter.nargs == -1 else ''}")
        else:
            names = [*parameter.opts, *parameter.secondary_opts]
            lines.append(f"{name} {', '.join(sorted(names))}")
    for below_name, below in getattr(command, "commands", {}).items():
        lines += _walk(below, f"{name} {below_name}")
    return lines or [name]


if __name__ == "__main__":
    from moestro.cli.main import app

    print("\n".join(list_flags(app)))
