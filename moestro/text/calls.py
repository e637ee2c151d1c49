"""What a stream of tool calls consists of, and one call that is written as a JSON object.

Knows JSON's marks, not how a model sets calls apart from text. Next: tools.py, forced.py.
"""

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

_HEAD = re.compile(
    r"""\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\\s]{1,256})"\s*,\s*"""
    r""""(?:arguments|parameters)"\s*:\s*"""
)
_STRUCTURE = frozenset('{}[]:,"+-. \t\r\n0123456789abcdefghijklmnopqrstuvwxyzE')


@dataclass(frozen=True)
class Text:
    """Plain text of an answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins; `index` counts the calls of an answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of one call's arguments: all of them joined are its JSON."""

    index: int
    delta: str


ToolEvent = Text | CallStart | CallArguments


def make_call_id() -> str:
    """Make an id for a call whose model gave it none."""
    return f"call_{secrets.token_hex(12)}"


class JsonCall:
    """A call as `{"name": ..., "arguments": {...}}`, one character at a time.

    In that order the arguments come out as they grow; in any other when the object is complete.
    Other keys are ignored.
    """

    def __init__(self, index: int, make_id: Callable[[], str]) -> None:
        self.has_started = False
        self.is_done = False
        self.is_broken = False
        self._index = index
        self._make_id = make_id
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._in_arguments = False
        self._taken: list[str] = []

    @property
    def raw(self) -> str:
        """All that was taken before the call could be told."""
        return "".join(self._taken)

    def push(self, text: str) -> tuple[list[ToolEvent], str]:
        """Take text; return events and, once the call is done or broken, what is left."""
        events: list[ToolEvent] = []
        delta = ""
        for place, character in enumerate(text):
            was_deep = self._depth
            if not self._advance(character):
                self.is_broken = True
                return [*events, *self._arguments(delta)], text[place:]
            if not self.has_started:
                events += self._find_start(character, was_deep)
            if self._in_arguments:
                delta += character
                self._in_arguments = self._depth > 1
            if self.has_started and self._depth == 0:
                self.is_done = True
            if self.is_done or self.is_broken:
                return [*events, *self._arguments(delta)], text[place + 1 :]
        return [*events, *self._arguments(delta)], ""

    def _find_start(self, character: str, was_deep: int) -> list[ToolEvent]:
        head = _HEAD.fullmatch(self.raw) if (character, was_deep) == ("{", 1) else None
        self._taken.append(character)
        if head and not self._in_string:
            self.has_started = self._in_arguments = True
            return [CallStart(self._index, self._make_id(), head["name"])]
        if self._depth > 0 or character != "}":
            return []
        found = _parse_call(self.raw)
        if found is None:
            self.is_broken = True
            return []
        self.has_started = True
        name, arguments = found
        return [
            CallStart(self._index, self._make_id(), name),
            CallArguments(self._index, arguments),
        ]

    def _arguments(self, delta: str) -> list[ToolEvent]:
        return [CallArguments(self._index, delta)] if delta else []

    def _advance(self, character: str) -> bool:
        """Follow JSON's structure; false where the character cannot belong to an object."""
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
            return True
        if character not in _STRUCTURE or (self._depth == 0 and character not in "{ \t\r\n"):
            return False
        self._in_string = character == '"'
        self._depth += (character in "{[") - (character in "}]")
        return True


def _parse_call(raw: str) -> tuple[str, str] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not found["name"]:
        return None
    arguments = found.get("arguments", found.get("parameters"))
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments)
    try:
        f"{found['name']}{arguments}".encode()
    except UnicodeEncodeError:
        return None
    return found["name"], arguments or "{}"
