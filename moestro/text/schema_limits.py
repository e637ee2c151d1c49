"""JSON schemas that would take seconds or gigabytes to compile are refused before anyone tries.

The compiler of grammars bounds most of what it does, but not all: these limits cover the rest.
Knows a schema's size and shape, not what it accepts. Next: grammar.py.
"""

import json
import math
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from moestro.errors import DataError

_MAX_CHARS = 1 << 17
_MAX_DEPTH = 64
_MAX_KEYS = 1000
# A number that must be a multiple of n takes an automaton of n states, of several their least
# common multiple.
_MAX_MULTIPLE = 20_000


def read_schema(source: str) -> str:
    """Check a JSON schema's text and return it as plain JSON without compiler options."""
    if len(source) > _MAX_CHARS:
        raise DataError(
            f"the JSON schema has {len(source)} characters, limit {_MAX_CHARS}: shorten it"
        )
    try:
        schema = json.loads(source, parse_constant=_refuse_constant, parse_float=_read_float)
    # Broken JSON and a number too long to parse are ValueErrors.
    except (ValueError, RecursionError) as error:
        raise DataError(f"the JSON schema is not valid JSON ({error}): correct it") from error
    if not isinstance(schema, dict):
        raise DataError(f"the JSON schema is {json.dumps(schema)[:40]}: give an object with a type")
    multiple = 1
    for depth, node in _walk(schema):
        _check_shape(depth, node)
        if "multipleOf" in node:
            multiple = math.lcm(multiple, _coefficient(node["multipleOf"]))
        if multiple > _MAX_MULTIPLE:
            raise DataError(
                f"the JSON schema has multipleOf {node['multipleOf']}: the least common multiple"
                f" of all of them may be at most {_MAX_MULTIPLE}: give smaller ones"
            )
    plain = {key: value for key, value in schema.items() if key != "x-guidance"}
    return json.dumps(plain, ensure_ascii=False)


def _walk(schema: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    waiting: list[tuple[int, Any]] = [(1, schema)]
    while waiting:
        depth, node = waiting.pop()
        if isinstance(node, dict):
            yield depth, node
            waiting += ((depth + 1, item) for item in node.values())
        elif isinstance(node, list):
            waiting += ((depth + 1, item) for item in node)


def _check_shape(depth: int, node: dict[str, Any]) -> None:
    if depth > _MAX_DEPTH:
        raise DataError(
            f"the JSON schema nests deeper than {_MAX_DEPTH}: name its parts in $defs instead"
        )
    if len(node) > _MAX_KEYS:
        raise DataError(
            f"an object in the JSON schema has {len(node)} keys, limit {_MAX_KEYS}: use fewer"
        )


def _coefficient(multiple: object) -> int:
    # Where it is no number, or names a property of that name, the compiler judges it.
    if isinstance(multiple, bool) or not isinstance(multiple, int | float):
        return 1
    try:
        digits = Decimal(str(multiple)).normalize().as_tuple().digits
    except InvalidOperation:
        return 1
    return max(1, int("".join(map(str, digits))))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:40]} is beyond the range of numbers")
    return number
