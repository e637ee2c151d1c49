"""How much a chat template may do: steps, processor time, and the size of any one value.

Real templates stay a thousand times below each limit. Sizes are checked before a value is made.
Knows Python's values, not a template's syntax. Next: sandbox_filters.py.
"""

import re
import time
from collections.abc import Sequence

import jinja2

MAX_SIZE = 1 << 23
MAX_SECONDS = 1.0
MAX_WORK = 1 << 25
# Who has done less when the time is up gets it once more.
_LITTLE_WORK = 1 << 12
_MAX_ITEMS = 1 << 17
_MAX_BITS = 10_000
_MAX_FORMAT_CHARS = 4096
# `%9999d`, `%*d`, `{:9999}`, and a width that is itself a field.
_LONG_WIDTH = re.compile(r"\d{4}|\*|\{[^{}]*\{")


class LimitError(jinja2.TemplateError):
    """The template does more work than any chat template has reason to."""


class Meter:
    """Work and processor time of one rendering; other threads do not count."""

    def __init__(self) -> None:
        self._deadline_s = time.thread_time() + MAX_SECONDS
        self._work = 0
        self._has_more_time = False

    def count(self, work: int = 1) -> None:
        """Add work in steps or characters; past a limit raise LimitError."""
        self._work += work + 1
        if self._work > MAX_WORK:
            raise LimitError(f"it does more than {MAX_WORK} steps of work")
        now_s = time.thread_time()
        if now_s <= self._deadline_s:
            return
        if self._work > _LITTLE_WORK or self._has_more_time:
            raise LimitError(f"it takes more than {MAX_SECONDS:g} s of processor time")
        # Python may have collected the whole process's garbage in this thread meanwhile.
        self._has_more_time = True
        self._deadline_s = now_s + MAX_SECONDS


def check_size(size: int) -> None:
    """Raise LimitError for a text or list longer than any prompt."""
    if size > MAX_SIZE:
        raise LimitError(f"it makes a value of more than {MAX_SIZE} characters")


def check_value(value: object) -> int:
    """Return a value's size with all that it holds; one that is too large raises LimitError."""
    if isinstance(value, str):
        check_size(len(value))
        return len(value)
    size = num_items = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        num_items += 1
        size += len(item) if isinstance(item, str) else 1
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        if num_items + len(waiting) > _MAX_ITEMS:
            raise LimitError(f"it makes a value of more than {_MAX_ITEMS} items")
    check_size(size)
    return size


def check_operands(operator: str, left: object, right: object) -> None:
    """Raise LimitError if what `+`, `*`, `**` or `%` would make is too large."""
    for value in (left, right):
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise LimitError(f"it computes with a number of more than {_MAX_BITS} bits")
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * abs(right) > _MAX_BITS:
            raise LimitError(f"it makes a number of more than {_MAX_BITS} bits")
    elif operator == "%" and isinstance(left, str):
        check_value(right)
        check_format(left)
    elif operator == "*":
        for value, factor in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(factor, int):
                check_size(max(1, check_value(value)) * factor)
    else:
        check_size(check_value(left) + check_value(right))


def check_replace(text: str, before: str, after: str) -> None:
    """Raise LimitError if replacing one text by another would make too long a text."""
    check_size(len(text) + text.count(before) * len(after))


def check_join(between: str, items: Sequence[str]) -> None:
    """Raise LimitError if the items, with `between` between them, are too long a text."""
    check_size(check_value(items) + len(items) * len(between))


def check_format(text: str) -> None:
    """Raise LimitError if a format asks for wide columns."""
    if len(text) > _MAX_FORMAT_CHARS or _LONG_WIDTH.search(text):
        raise LimitError(f"it formats with {text[:20]!r}")
