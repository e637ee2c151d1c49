"""docs/settings.md, written from the dataclasses that settings are built into.

What a setting does, and its limits, stand as text below its field in the code. To accept a change:

    make docs

Knows dataclasses, not what any setting means. Next: test_settings_page.py.
"""

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from moestro.api.key_terms import KeyTerms
from moestro.cli.fleet import FleetConfig
from moestro.cli.wiring import ServeConfig
from moestro.model.config import ModelConfig
from moestro.model.presets import PRESETS
from moestro.policy.learn import LearnConfig
from moestro.train.config import RunConfig

HEAD = """\
# Settings

Written by `make docs` from the code, and kept the same by a test.

- A TOML file goes before the defaults, and `--set a.b=c` before both: `--set train.steps=100`.
- A name that does not exist is an error with a hint. So is a value beyond its limits.
- TOML has no word for nothing: write `"none"`.
- Names say their units: `_s` seconds, `_bytes` bytes, `_usd` dollars.
- `env:NAME` stands for what the environment variable NAME holds. No secret is kept in a file.
- A run folder's `config.toml` holds every setting of its run.
"""
TABLE_HEAD = "| name | type | default | what it does | limits |\n|---|---|---|---|---|"
# A title, how to give these settings, the name that they all lie below, and what they are built
# into.
CHAPTERS: tuple[tuple[str, str, str, type], ...] = (
    (
        "Training",
        "`moestro train CONFIG.toml` and `moestro demo`. Examples:"
        " [own-text.toml](../configs/own-text.toml), [demo.toml](../configs/demo.toml)."
        " What `[model]` leaves out is the preset's, [below](#presets), and then the default.",
        "",
        RunConfig,
    ),
    (
        "One model behind HTTP",
        "`moestro serve FOLDER` or `moestro serve CONFIG.toml`."
        " Example: [serve.toml](../configs/serve.toml).",
        "",
        ServeConfig,
    ),
    (
        "A fleet",
        "`moestro serve CONFIG.toml` where the file has `[[models]]`."
        " Example: [fleet.toml](../configs/fleet.toml).",
        "",
        FleetConfig,
    ),
    (
        "Keys",
        "`moestro keys add CONFIG.toml NAME --set budget_usd=20` and `moestro keys set`.",
        "",
        KeyTerms,
    ),
    (
        "Learning a policy",
        "`moestro policy fit OUTCOMES --out FOLDER --set learn.num_topics=24`. Besides,"
        " `--set prices.NAME=0.1` is a model's price in dollars per million tokens.",
        "learn",
        LearnConfig,
    ),
)
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the page."""

    name: str
    kind: str
    default: str
    meaning: str
    limits: str

    def to_row(self) -> str:
        return f"| `{self.name}` | {self.kind} | {self.default} | {self.meaning} | {self.limits} |"


def render() -> str:
    """Return the page."""
    seen: dict[type, str] = {}
    parts = [HEAD]
    for title, usage, name, kind in CHAPTERS:
        parts += [f"## {title}\n", f"{usage}\n"]
        parts += _render_tables(name, f"[{name}]", kind, seen)
        if kind is RunConfig:
            parts += ["### Presets\n", _render_presets()]
    return "\n".join(parts)


def list_settings(kind: type) -> list[Setting]:
    """List the settings of a dataclass, without those of the tables in it."""
    texts, hints = _field_texts(kind), typing.get_type_hints(kind)
    listed = []
    for field in _fields(kind):
        if _table_in(hints[field.name]) is not None:
            continue
        meaning, _, limits = texts.get(field.name, "").partition(" Limits: ")
        words = _say_kind(hints[field.name])
        listed.append(
            Setting(field.name, words, _say_default(field), meaning, limits.removesuffix("."))
        )
    return listed


def list_tables(kind: type, name: str = "") -> Iterator[tuple[str, str, type]]:
    """Yield the tables right below a dataclass: full name, heading in TOML, dataclass."""
    hints = typing.get_type_hints(kind)
    for field in _fields(kind):
        hint = hints[field.name]
        below = _table_in(hint)
        if below is None:
            continue
        full = f"{name}.{field.name}" if name else field.name
        if typing.get_origin(hint) is dict:
            full += ".NAME"
        heading = f"[[{full}]]" if typing.get_origin(hint) is tuple else f"[{full}]"
        yield full, heading, below


def _render_tables(name: str, heading: str, kind: type, seen: dict[type, str]) -> Iterator[str]:
    if name:
        yield f"### `{heading}`\n"
    if kind in seen:
        yield f"As `{seen[kind]}` above.\n"
        return
    seen[kind] = heading
    if name:
        yield f"{inspect.cleandoc(kind.__doc__ or '')}\n"
    listed = list_settings(kind)
    if listed:
        yield "\n".join([TABLE_HEAD, *(each.to_row() for each in listed)]) + "\n"
    for below in list_tables(kind, name):
        yield from _render_tables(*below, seen)


def _render_presets() -> str:
    presets = {name: dict(_flatten(values)) for name, values in PRESETS.items()}
    names = [each.name for each in list_settings(ModelConfig)]
    names += sorted({name for values in presets.values() for name in values} - set(names))
    rows = [
        f"| setting | {' | '.join(f'`{name}`' for name in presets)} |",
        "|---" * (len(presets) + 1) + "|",
    ]
    for name in names:
        values = [_say(each[name]) if name in each else "" for each in presets.values()]
        if any(values):
            rows.append(f"| `{name}` | {' | '.join(values)} |")
    return "\n".join(rows) + "\n"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _fields(kind: type) -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(kind) if field.init]


def _field_texts(kind: type) -> dict[str, str]:
    """Return the text below each field that has one."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise(definition.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
    return texts


def _table_in(hint: Any) -> type | None:
    """Return the dataclass that a field holds, or holds several of."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint)
    found = [_table_in(each) for each in typing.get_args(hint)]
    return next((each for each in found if each is not None), None)


def _say_kind(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_say_kind(each) for each in arguments)
    if origin is Literal:
        return ", ".join(_say(each) for each in arguments)
    if origin is tuple:
        items = _say_kind(arguments[0])
        return f"list of {'numbers' if items == 'number' else items}"
    if origin is dict:
        return "table" if arguments[1] is Any else f"table of {_say_kind(arguments[1])}"
    return "none" if hint is type(None) else WORDS[hint]


def _say_default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _say(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else _say(field.default)


def _say(value: Any) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(render(), end="")
