"""Keeps names of special tokens that a user wrote from becoming special tokens.

Before a template runs, a private mark goes into everything in the messages that could begin such a
name; after it, the text is cut where a mark still breaks a name, and the marks vanish. Trimming,
splitting and JSON leave marks alone. What this cannot see: a name of which the template itself
writes the first character, and a name of one character. Where a tokenizer puts a space before
every text, a cut gains one. Knows names, not messages' meaning. Next: template.py.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from jinja2 import nodes

from moestro.errors import DataError

# Added tokens that are not special count as control tokens if they look like it: `<think>`.
_CONTROL = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_NOTHING = r"(?!)"
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
_SEARCHES = {"split", "rsplit", "partition", "rpartition", "startswith", "endswith"}
_SEARCHES |= {"find", "rfind", "index", "rindex", "count", "removeprefix", "removesuffix"}


@dataclass(frozen=True, kw_only=True)
class SpecialNames:
    """Names to guard: `special` ones always, `control` ones unless the template looks for them."""

    special: frozenset[str]
    control: frozenset[str]

    @classmethod
    def read(cls, added_tokens: Iterable[Mapping[str, Any]]) -> "SpecialNames":
        """Take the `added_tokens` of a tokenizer.json."""
        special, control = set(), set()
        for token in added_tokens:
            name = token.get("content")
            if not isinstance(name, str) or len(name) < 2:
                continue
            if token.get("special"):
                special.add(name)
            elif _CONTROL.fullmatch(name):
                control.add(name)
        return cls(special=frozenset(special), control=frozenset(control))

    @cached_property
    def starts(self) -> re.Pattern[str]:
        """The first character of any name, wherever it stands; of a name in letters, all of it."""
        names = self.special | self.control
        patterns = {re.escape(name[0]) for name in names if not name[0].isalnum()}
        # To break each letter that begins a name would hide words from the template.
        words = {name for name in names if name[0].isalnum()}
        patterns |= {f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in words}
        return re.compile("|".join(sorted(patterns)) or _NOTHING)

    @cached_property
    def _lengths(self) -> frozenset[int]:
        return frozenset(map(len, self.special | self.control))

    def has_name_at(self, text: str, start: int) -> bool:
        """Tell whether a name begins at this character."""
        found = (text[start : start + length] for length in self._lengths)
        return any(name in self.special or name in self.control for name in found)


class Marks:
    """The marks of one rendering; `end` is another, for the place where an answer goes on."""

    def __init__(
        self, names: SpecialNames, searched: Collection[str], texts: Iterable[str]
    ) -> None:
        """Choose marks that occur in none of the texts; `searched` is what the template seeks."""
        self._names = names
        kept = sorted(set(searched) - names.special, key=len, reverse=True)
        self._kept = re.compile("|".join(map(re.escape, kept)) or _NOTHING)
        self.mark, self.end = _choose_marks(texts)

    def protect(self, value: Any, *, is_answer: bool) -> Any:  # noqa: ANN401 - plain JSON
        """Return plain data with marks in every text; in an answer, what is searched for stays."""
        if isinstance(value, str):
            return self._names.starts.sub(
                lambda found: self._mark(found, is_answer=is_answer), value
            )
        if isinstance(value, Mapping):
            return {
                self.protect(key, is_answer=is_answer): self.protect(item, is_answer=is_answer)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.protect(item, is_answer=is_answer) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise DataError(f"a message holds a {type(value).__name__}: give plain JSON values")

    def cut(self, text: str) -> tuple[str, ...]:
        """Remove the marks; cut at those that break a name, so that no piece holds it."""
        parts = text.replace(json.dumps(self.mark)[1:-1], self.mark).split(self.mark)
        clean = "".join(parts)
        pieces, start, place = [], 0, 0
        for part in parts[:-1]:
            place += len(part)
            if place > start and self._names.has_name_at(clean, place - 1):
                pieces.append(clean[start:place])
                start = place
        return (*pieces, clean[start:])

    def _mark(self, found: re.Match[str], *, is_answer: bool) -> str:
        if is_answer and self._kept.match(found.string, found.start()):
            return found.group()
        return f"{found.group()}{self.mark}"


def find_searched(tree: nodes.Template) -> frozenset[str]:
    """List the texts that a template looks for, to split at them or to remove them."""
    constants = {
        each.target.name: each.node.value
        for each in tree.find_all(nodes.Assign)
        if isinstance(each.target, nodes.Name) and isinstance(each.node, nodes.Const)
    }
    sought: list[nodes.Node] = []
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in {*_SEARCHES, "replace"}:
            sought += call.args[:1]
    for each in tree.find_all(nodes.Filter):
        sought += each.args[:1] if each.name == "replace" else []
    for comparison in tree.find_all(nodes.Compare):
        if any(operand.op in {"in", "notin"} for operand in comparison.ops):
            sought.append(comparison.expr)
    values = (
        constants.get(node.name) if isinstance(node, nodes.Name) else getattr(node, "value", None)
        for node in sought
    )
    return frozenset(value for value in values if isinstance(value, str) and len(value) > 1)


def list_texts(value: Any) -> Iterable[str]:  # noqa: ANN401 - plain JSON
    """List every text in plain data, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from list_texts(key)
            yield from list_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from list_texts(item)


def _choose_marks(texts: Iterable[str]) -> tuple[str, str]:
    taken: set[str] = set()
    for text in texts:
        # JSON that a template writes may hold a mark in this form.
        taken.update(text, (chr(int(code, 16)) for code in _ESCAPE.findall(text)))
    for area in _PRIVATE_USE:
        free = [*islice((chr(code) for code in area if chr(code) not in taken), 2)]
        if len(free) == 2:
            return free[0], free[1]
    raise DataError("the messages use every private character of Unicode: remove some")
