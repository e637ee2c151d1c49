"""Tool calls that a request insists on: the schema that forces them, and reading them back.

Knows OpenAI's `tools` and `tool_choice`, not how a model writes calls of its own accord. Next:
calls.py, grammar.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moestro.errors import DataError
from moestro.text.calls import JsonCall, Text, ToolEvent, make_call_id

_MAX_CALLS = 64
# Their values are data, in which "$ref" is no reference.
_DATA_KEYS = frozenset(("const", "default", "enum", "examples"))
# Their keys are names, which may be any word.
_NAMING_KEYS = frozenset(("$defs", "definitions", "patternProperties", "properties"))
# They would make the schema a document of its own, which it is no longer.
_ROOT_KEYS = frozenset(("$id", "$schema"))


def forced_schema(
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any],
    *,
    parallel: bool = False,
) -> dict[str, Any]:
    """Build the schema of a call of a named function, or of any one where it is `required`.

    With `parallel` it is an array of one call or more.
    """
    functions = _choose(tools, tool_choice)
    calls, parts = [], {}
    for index, (name, function) in enumerate(functions.items()):
        part = f"arguments_{index}"
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise DataError(f"the parameters of function {name} are no JSON schema: give an object")
        own = {key: value for key, value in parameters.items() if key not in _ROOT_KEYS}
        parts[part] = _move({**own, "type": "object"}, f"#/$defs/{part}")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{part}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if not parallel:
        return {**call, "$defs": parts}
    return {
        "type": "array",
        "items": call,
        "minItems": 1,
        "maxItems": _MAX_CALLS,
        "$defs": parts,
    }


def parse_forced(text: str, make_id: Callable[[], str] = make_call_id) -> list[ToolEvent]:
    """Turn a whole forced answer into calls."""
    stream = ForcedStream(make_id)
    return [*stream.push(text), *stream.finish()]


class ForcedStream:
    """A forced answer as it grows; whatever is no call comes out as text."""

    def __init__(self, make_id: Callable[[], str] = make_call_id) -> None:
        self.num_calls = 0
        self._make_id = make_id
        self._call: JsonCall | None = None
        self._is_text = False

    def push(self, text: str) -> list[ToolEvent]:
        """Take more text; return the calls and arguments that are certain now."""
        events: list[ToolEvent] = []
        while text:
            if self._is_text:
                return [*events, Text(text)]
            if self._call is None:
                text = text.lstrip("[], \t\r\n")
                self._call = JsonCall(self.num_calls, self._make_id) if text else None
                continue
            found, text = self._call.push(text)
            events += found
            if self._call.is_broken and not self._call.has_started:
                text = self._call.raw + text
            self._is_text = self._call.is_broken
            if self._call.is_done:
                self.num_calls += 1
                self._call = None
        return events

    def finish(self) -> list[ToolEvent]:
        """Return what was held back of a call that was cut off before its arguments."""
        held = "" if self._call is None or self._is_text else self._call.raw
        is_lost = self._call is not None and not self._call.has_started
        self._call = None
        return [Text(held)] if held and is_lost else []


def _choose(
    tools: Sequence[Mapping[str, Any]], tool_choice: str | Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    functions: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError("a tool has no function with a name: give both")
        functions[function["name"]] = function
    if not functions:
        raise DataError("tool_choice asks for a call, but there are no tools: send some")
    if tool_choice == "required":
        return functions
    asked = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    name = asked.get("name") if isinstance(asked, Mapping) else None
    if not isinstance(name, str) or name not in functions:
        known = ", ".join(functions)
        raise DataError(
            f"tool_choice {tool_choice!r} names none of the functions {known}: name one of them"
        )
    return {name: functions[name]}


def _move(schema: Any, place: str) -> Any:  # noqa: ANN401 - any part of a schema
    """Make references within a schema lead to where it lies now."""
    if isinstance(schema, list):
        return [_move(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            value = place + value[1:]
        elif key in _NAMING_KEYS and isinstance(value, Mapping):
            value = {name: _move(below, place) for name, below in value.items()}
        elif key not in _DATA_KEYS:
            value = _move(value, place)
        moved[key] = value
    return moved
