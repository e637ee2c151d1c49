"""What a chat template may call: jinja2's filters and Hugging Face's functions, made safe.

Knows values, not messages. Next: sandbox.py.
"""

import datetime
import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.utils import Namespace

from moestro.text.sandbox_limits import (
    LimitError,
    check_format,
    check_join,
    check_replace,
    check_value,
)

# They make long text of short, or read what lies outside the data.
REFUSED_FILTERS = frozenset(
    (
        *("batch", "center", "filesizeformat", "forceescape", "indent", "pprint", "random"),
        *("slice", "striptags", "sum", "urlize", "wordwrap", "xmlattr"),
    )
)
REFUSED_METHODS = frozenset(
    (
        *("center", "encode", "expandtabs", "format_map", "ljust", "maketrans"),
        *("rjust", "to_bytes", "translate", "zfill"),
    )
)


class TemplateRefusal(jinja2.TemplateError):
    """The template itself says that these messages cannot be rendered."""


def list_filters() -> dict[str, Callable[..., Any]]:
    """List the filters by name; each checks what it is given."""
    ours = {"format": _format, "join": _join, "replace": _replace, "tojson": _to_json}
    kept = {name: function for name, function in FILTERS.items() if name not in REFUSED_FILTERS}
    return {name: _guard(function) for name, function in (kept | ours).items()}


def list_globals() -> dict[str, Any]:
    """List the functions that Hugging Face's templates expect, jinja2's own `range` aside."""
    return {
        "dict": _make_dict,
        "namespace": _Namespace,
        "raise_exception": _refuse,
        "strftime_now": _strftime_now,
    }


def call_method(text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check the arguments of a text's method that may make long text; return them as checked."""
    if name == "join" and args:
        items = list(args[0])
        check_join(text, items)
        return (items,)
    if name == "replace" and len(args) >= 2:
        check_replace(text, *args[:2])
    elif name == "format":
        check_format(text)
    return args


def _guard(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any value
        for value in (*args, *kwargs.values()):
            check_value(value)
        return function(*args, **kwargs)

    return guarded


def _replace(text: object, before: object, after: object, count: int = -1) -> str:
    check_replace(str(text), str(before), str(after))
    return str(text).replace(str(before), str(after), count)


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment,
    items: Iterable[Any],
    between: object = "",
    attribute: str | int | None = None,
) -> str:
    found = list(items)
    if attribute is not None:
        found = [environment.getitem(item, attribute) for item in found]
    check_value(found)
    texts = [str(item) for item in found]
    check_join(str(between), texts)
    return str(between).join(texts)


def _format(text: object, *args: object, **kwargs: object) -> str:
    check_format(str(text))
    return str(text) % (kwargs or args)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # As chat templates expect: nothing escaped for HTML, and spaces after marks.
    if len(str(indent or 0)) > 2:
        raise LimitError(f"it indents JSON by {str(indent)[:20]}")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Namespace(Namespace):
    """A template's own variables; underscored names could pass for Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - any value
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401 - any value
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"it names an attribute {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401 - any value
    return dict(*args, **kwargs)


def _refuse(message: object) -> None:
    raise TemplateRefusal(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or any(character.isdigit() for character in pattern):
        raise LimitError(f"it writes the date as {pattern[:20]!r}")
    return datetime.datetime.now().astimezone().strftime(pattern)
