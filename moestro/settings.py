"""TOML and `--set a.b=c` into frozen dataclasses, and back; secrets from the environment.

Unknown keys are errors with a hint. Knows dataclasses and types, not what any setting means.
Next: the `config.py` of each package.
"""

import dataclasses
import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from moestro.errors import ConfigError

T = TypeVar("T")


def load(path: Path) -> dict[str, Any]:
    """Read a TOML file as nested tables."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder, expected a TOML file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: give a file that can be read") from error
    # Broken TOML, text that is not UTF-8 and a number too long to parse are all ValueErrors.
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `top` over `base`, table by table."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merge(below, value)
        merged[key] = value
    return merged


def override(tables: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Lay `--set a.b=c` assignments over nested tables; a value is TOML, or else plain text."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        names = [name.strip() for name in key.split(".")]
        if not equals or not all(names):
            raise ConfigError(f"--set {assignment}: expected NAME=VALUE, like train.steps=100")
        value: Any = _parse_value(text.strip())
        for name in reversed(names):
            value = {name: value}
        tables = merge(tables, value)
    return dict(tables)


def build(kind: type[T], tables: Mapping[str, Any], prefix: str = "") -> T:
    """Make the dataclass `kind` from nested tables; wrong names and types raise ConfigError.

    A partial table keeps the rest of its field's default; `"none"` stands for None.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tables.items():
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: unknown setting.{_hint(key, fields, hints)}")
        value = _over_default(fields[key], value)
        values[key] = _convert(hints[key], value, f"{prefix}{key}")
    missing = [name for name, field in fields.items() if name not in values and _is_required(field)]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]}: missing: add it to the configuration or --set it")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def to_tables(config: Any) -> dict[str, Any]:
    """Turn a dataclass into nested tables; None is left out if it is the default, else "none"."""
    tables = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.init and not (value is None and field.default is None):
            tables[field.name] = _plain(value)
    return tables


def to_toml(config: Any) -> str:
    """Write a dataclass as TOML text that `build` reads back to an equal value."""
    return tomli_w.dumps(to_tables(config))


def secret(name: str) -> str:
    """Return the secret that an environment variable holds."""
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"environment variable {name} is not set: set it, or name another one")
    return value


def set_secret(name: str, value: str) -> None:
    """Leave a secret where processes that are started from here on find it."""
    os.environ[name] = value


def gather_metrics(folder: Path) -> None:
    """Have processes that are started from here on leave in a folder what they count."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def variable(name: str, default: str) -> str:
    """Return what an environment variable holds, the default if it is not set."""
    return os.environ.get(name) or default


def _parse_value(text: str) -> Any:
    try:
        tables = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return tables["value"] if len(tables) == 1 else text


def _hint(key: str, names: Mapping[str, object], kinds: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if near:
        return f" hint: {near[0]}"
    below = {
        field.name: f"{name}.{field.name}"
        for name in names
        if dataclasses.is_dataclass(kinds[name])
        for field in dataclasses.fields(kinds[name])
    }
    near = difflib.get_close_matches(key, below, n=1, cutoff=0.7)
    return f" hint: {below[near[0]]}" if near else f" known: {', '.join(sorted(names))}"


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _over_default(field: "dataclasses.Field[Any]", value: Any) -> Any:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    is_table = dataclasses.is_dataclass(default) and isinstance(value, Mapping)
    return merge(to_tables(default), value) if is_table else value


def _convert(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, name)
    if origin is tuple:
        return _convert_tuple(arguments, value, name)
    if origin is typing.Literal:
        # By type as well: True equals 1, but `choices = true` is a mistake.
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
        raise ConfigError(f"{name}: {value!r} is not one of {', '.join(map(str, arguments))}")
    if origin is dict or kind is dict or dataclasses.is_dataclass(kind):
        return _convert_table(kind, value, name)
    return value if kind is Any else _convert_scalar(kind, value, name)


def _convert_table(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: {value!r} is not a table")
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, f"{name}.")
    _, item_kind = typing.get_args(kind) or (str, Any)
    return {key: _convert(item_kind, item, f"{name}.{key}") for key, item in value.items()}


def _convert_tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ConfigError(f"{name}: {value!r} is not a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(items)
    if len(items) != len(kinds):
        raise ConfigError(f"{name}: {value!r} has {len(items)} items, expected {len(kinds)}")
    pairs = enumerate(zip(kinds, items, strict=True))
    return tuple(_convert(kind, item, f"{name}[{index}]") for index, (kind, item) in pairs)


def _convert_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    # TOML cannot say None, and a preset's value must be removable from the command line.
    if type(None) in kinds and (value is None or value == "none"):
        return None
    choices = [kind for kind in kinds if kind is not type(None)]
    reasons = []
    for kind in choices:
        try:
            return _convert(kind, value, name)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; or ".join(reasons))


def _convert_scalar(kind: type, value: Any, name: str) -> Any:
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{name}: nan is not a number: give one")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        with suppress(OverflowError):
            return float(value)
    if issubclass(kind, Path) and isinstance(value, str):
        return kind(value)
    # True is an int to Python, but `steps = true` is a mistake.
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    quotes = f""": for text, write {name}='"{value}"'""" if kind is str else ""
    expected = f"expected {kind.__name__}{quotes}"
    raise ConfigError(f"{name}: {value!r} is {type(value).__name__}, {expected}")


def _plain(value: Any) -> Any:
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value):
        return to_tables(value)
    if isinstance(value, Mapping):
        # A free table has no types to tell None from text, so here None is left out.
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
