"""The tool calls in what a model writes, as they are written: text in, text and calls out.

Which way a model writes them, its chat template shows. What does not follow that way comes out as
plain text, character for character; only white space between calls is dropped. Markers must
arrive as text. Knows no tokens and no schemas. Next: calls.py, forced.py, reasoning.py.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from moestro.text.calls import CallArguments, CallStart, JsonCall, Text, ToolEvent, make_call_id

_MAX_HEADER_CHARS = 512
_NAME = re.compile(r"[^\s<>\"{}]{1,256}")
_KIMI_ID = re.compile(r"(?:functions\.)?(?P<name>.+?)(?::\d+)?")
_FENCE = "` \t\r\n"


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """How one family of models writes calls: `begin` HEADER `separator` ARGUMENTS `end`.

    Without a separator, a call is one JSON object with a name and arguments. `ends_turn`: the mark
    `section_begin` stands behind every text, with calls or without, and is no part of it.
    """

    name: Literal["deepseek_v3", "deepseek_v3_1", "kimi_k2", "hermes", "gigachat_3", "gigachat_3_1"]
    begin: str
    end: str = ""
    separator: str = ""
    section_begin: str = ""
    section_end: str = ""
    ends_turn: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """What a backend must let through as text, though tokens may be special."""
        found = (self.section_begin, self.begin, self.separator, self.end, self.section_end)
        return tuple(marker for marker in found if marker)


def _deepseek_token(name: str) -> str:
    return f"<\uff5c{name.replace('_', chr(0x2581))}\uff5c>"


_SECTION_BEGIN = _deepseek_token("tool_calls_begin")
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v3_1",
    section_begin=_SECTION_BEGIN,
    begin=_deepseek_token("tool_call_begin"),
    separator=_deepseek_token("tool_sep"),
    end=_deepseek_token("tool_call_end"),
    section_end=_deepseek_token("tool_calls_end"),
)
DEEPSEEK_V3 = ToolFormat(
    name="deepseek_v3",
    section_begin=_SECTION_BEGIN,
    begin=f"{DEEPSEEK_V31.begin}function{DEEPSEEK_V31.separator}",
    separator="\n```json\n",
    end=DEEPSEEK_V31.end,
    section_end=DEEPSEEK_V31.section_end,
)
KIMI_K2 = ToolFormat(
    name="kimi_k2",
    section_begin="<|tool_calls_section_begin|>",
    begin="<|tool_call_begin|>",
    separator="<|tool_call_argument_begin|>",
    end="<|tool_call_end|>",
    section_end="<|tool_calls_section_end|>",
)
HERMES = ToolFormat(name="hermes", begin="<tool_call>", end="</tool_call>")

# A call is a turn of its own there, and the mark between turns comes before it.
_GIGACHAT_TURN_END = "<|message_sep|>"
GIGACHAT_3 = ToolFormat(
    name="gigachat_3",
    section_begin=_GIGACHAT_TURN_END,
    begin="function call<|role_sep|>\n",
    ends_turn=True,
)
GIGACHAT_31 = ToolFormat(
    name="gigachat_3_1",
    section_begin=_GIGACHAT_TURN_END,
    begin="<|function_call|>",
    ends_turn=True,
)


def detect(template_source: str) -> ToolFormat | None:
    """Tell from a chat template's text how its model writes tool calls."""
    if _SECTION_BEGIN in template_source:
        return DEEPSEEK_V3 if "```json" in template_source else DEEPSEEK_V31
    if KIMI_K2.section_begin in template_source:
        return KIMI_K2
    if _GIGACHAT_TURN_END in template_source:
        return _detect_gigachat(template_source)
    # The same tags hold XML in other families.
    is_xml = "<function=" in template_source or "<arg_key>" in template_source
    return HERMES if HERMES.begin in template_source and not is_xml else None


def _detect_gigachat(template_source: str) -> ToolFormat | None:
    if GIGACHAT_31.begin in template_source:
        return GIGACHAT_31
    # Version 3.5 knows the role too, but only to refuse it.
    return GIGACHAT_3 if "'role': 'function call'" in template_source else None


class ToolStream:
    """One answer as it grows; where the borders between texts lie changes only the pieces' sizes.

    `num_calls`: how many calls there were.
    """

    def __init__(self, tool_format: ToolFormat, make_id: Callable[[], str] = make_call_id) -> None:
        self.num_calls = 0
        self._format = tool_format
        self._make_id = make_id
        self._held = ""
        # Taken since the last plain text; it becomes text again if no call comes of it.
        self._raw = ""
        self._read = self._read_text
        self._call = JsonCall(0, make_id)
        self._is_last = False
        self._is_empty = True

    def push(self, text: str) -> list[ToolEvent]:
        """Take more text; return what is certain now."""
        self._held += text
        events: list[ToolEvent] = []
        while (found := self._read()) is not None:
            events += found
        return events

    def finish(self) -> list[ToolEvent]:
        """Return what was held back; a call that was cut off keeps what it had."""
        self._is_last = True
        events = self.push("")
        rest, self._raw, self._held = self._raw + self._held, "", ""
        return [*events, *_text(rest)]

    def _read_text(self) -> list[ToolEvent] | None:
        openers = [self._format.begin, self._format.section_begin]
        start, opener = _find_first(self._held, openers)
        if not opener:
            cut = len(self._held) - (0 if self._is_last else _possible_start(self._held, openers))
            return self._take_text(cut) if cut else None
        events = self._take_text(start)
        self._take_marker(opener)
        self._read = self._read_call if opener == self._format.begin else self._read_between
        return events

    def _read_between(self) -> list[ToolEvent] | None:
        rest = self._held.lstrip()
        self._raw += self._held[: len(self._held) - len(rest)]
        self._held = rest
        begin, end = self._format.begin, self._format.section_end
        if rest.startswith(begin):
            if not self._raw.strip():
                self._raw = ""
            self._take_marker(begin)
            self._read = self._read_call
            return []
        if end and rest.startswith(end):
            self._take_marker(end)
            # A section that held no call is text like any other.
            was_empty = self._raw.strip() != end
            return self._give_up() if was_empty else self._drop_raw()
        if not rest and self._is_last and not self._raw.strip():
            return self._drop_raw()
        is_open = begin.startswith(rest) or end.startswith(rest)
        return None if is_open and not self._is_last else self._give_up()

    def _read_call(self) -> list[ToolEvent] | None:
        if not self._format.separator:
            self._call = JsonCall(self.num_calls, self._make_id)
            self._read = self._read_json
            return []
        form = self._format
        markers = [form.separator, form.end, form.section_end, form.section_begin, form.begin]
        start, marker = _find_first(self._held[:_MAX_HEADER_CHARS], markers)
        if not marker and len(self._held) < _MAX_HEADER_CHARS:
            return None
        if marker != form.separator:
            return self._give_up()
        rest = self._held[start + len(marker) :].lstrip()
        if not self._is_last and (not rest or (rest != form.end and form.end.startswith(rest))):
            return None
        name = self._held[:start].strip()
        if not _NAME.fullmatch(name) or not rest.startswith(("{", form.end)):
            return self._give_up()
        self._raw, self._held = "", rest
        self._read, self._is_empty = self._read_arguments, True
        self.num_calls += 1
        return [self._start(name)]

    def _start(self, header: str) -> CallStart:
        if self._format.name != "kimi_k2":
            return CallStart(self.num_calls - 1, self._make_id(), header)
        found = _KIMI_ID.fullmatch(header)
        return CallStart(self.num_calls - 1, header, found["name"] if found else header)

    def _read_arguments(self) -> list[ToolEvent] | None:
        form = self._format
        closers = [form.end, form.section_end, form.section_begin, form.begin]
        start, closer = _find_first(self._held, closers)
        if not closer and not self._is_last:
            start = len(self._held) - _possible_start(self._held, closers)
        elif not closer:
            start = len(self._held)
        # A code fence may close here, which is none of the arguments.
        delta = self._held[:start].rstrip(_FENCE)
        if closer or self._is_last:
            self._held = self._held[start:].removeprefix(form.end)
            self._read = self._read_between
            delta = delta or ("{}" if self._is_empty and closer else "")
        else:
            self._held = self._held[len(delta) :]
        self._is_empty = self._is_empty and not delta
        events: list[ToolEvent] = [CallArguments(self.num_calls - 1, delta)] if delta else []
        return events if closer or self._is_last or delta else None

    def _read_json(self) -> list[ToolEvent] | None:
        call = self._call
        if not self._held and not self._is_last:
            return None
        had_started = call.has_started
        events, self._held = call.push(self._held)
        if call.has_started and not had_started:
            self.num_calls += 1
            self._raw = ""
        if call.is_done or (call.has_started and (call.is_broken or self._is_last)):
            self._read = self._read_json_end
        elif call.is_broken or self._is_last:
            self._raw += call.raw
            return self._give_up()
        return events

    def _read_json_end(self) -> list[ToolEvent] | None:
        rest = self._held.lstrip()
        if rest.startswith(self._format.end):
            self._held = rest.removeprefix(self._format.end)
        elif self._format.end.startswith(rest) and not self._is_last:
            return None
        self._read = self._read_between
        return []

    def _take_text(self, size: int) -> list[ToolEvent]:
        text, self._held = self._held[:size], self._held[size:]
        return _text(text)

    def _take_marker(self, marker: str) -> None:
        self._raw += marker
        self._held = self._held.removeprefix(marker)

    def _drop_raw(self) -> list[ToolEvent]:
        self._raw, self._read = "", self._read_text
        return []

    def _give_up(self) -> list[ToolEvent]:
        text, self._raw, self._read = self._raw, "", self._read_text
        if self._format.ends_turn and text.startswith(self._format.section_begin):
            text = text.removeprefix(self._format.section_begin).lstrip()
        return _text(text)


def _text(text: str) -> list[ToolEvent]:
    return [Text(text)] if text else []


def _find_first(text: str, markers: Sequence[str]) -> tuple[int, str]:
    """Find the marker that comes first, of several at one place the longest; none is (-1, "")."""
    found = [(text.find(marker), -len(marker), marker) for marker in markers if marker]
    start, _, marker = min((each for each in found if each[0] >= 0), default=(-1, 0, ""))
    return start, marker


def _possible_start(text: str, markers: Sequence[str]) -> int:
    longest = max(map(len, markers)) - 1
    sizes = range(min(longest, len(text)), 0, -1)
    return next(
        (size for size in sizes if any(marker.startswith(text[-size:]) for marker in markers)), 0
    )
