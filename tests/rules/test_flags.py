"""Flags are few and frozen: every other knob is a setting, reached with --set.

How to change the list on purpose stands in flag_list.py. Next: test_docs.py.
"""

from pathlib import Path

import typer

from tests.rules.flag_list import list_flags


def test_the_command_line_has_the_frozen_flags_and_no_others() -> None:
    from moestro.cli.main import app

    frozen = Path(__file__).with_name("flags.txt").read_text().splitlines()
    now = list_flags(app)
    surplus, missing = sorted(set(now) - set(frozen)), sorted(set(frozen) - set(now))
    assert now == frozen, f"not in flags.txt: {surplus}; gone: {missing}; see flag_list.py"


def test_every_argument_and_flag_of_every_command_is_listed() -> None:
    tree = typer.Typer(add_completion=False)
    below = typer.Typer()

    @tree.command()
    def score(paths: list[str], num: int = typer.Option(3, "--experts", "-k")) -> None: ...

    @below.command()
    def fit(is_loud: bool = typer.Option(True, "--loud/--quiet")) -> None: ...

    @below.command()
    def report() -> None: ...

    tree.add_typer(below, name="policy")
    assert list_flags(tree) == [
        "moestro policy fit --loud, --quiet",
        "moestro policy report",
        "moestro score --experts, -k",
        "moestro score PATHS...",
    ]
