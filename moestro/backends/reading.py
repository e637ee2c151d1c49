"""What an answer's text means: reasoning, content, calls of tools, split as the text arrives.

Knows text, no tokens. Next: choice.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from moestro.api.chunks import ToolCallDelta
from moestro.text.calls import CallArguments, CallStart, Text, ToolEvent
from moestro.text.forced import ForcedStream
from moestro.text.reasoning import ReasoningStream
from moestro.text.tools import ToolStream


@dataclass
class Passage:
    """What a piece of text turned out to be."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell a reader."""
        return not (self.content or self.reasoning or self.tool_calls)


class Reading:
    """One answer as it is read. `num_calls` counts the calls of tools in it.

    It `is_over` where `is_one_all` that may be called, and a second call begins.
    """

    def __init__(
        self,
        reasoning: ReasoningStream | None,
        tools: ToolStream | ForcedStream | None,
        *,
        is_one_all: bool = False,
    ) -> None:
        self.is_over = False
        self._is_one_all = is_one_all
        self._reasoning = reasoning
        self._tools = tools
        self.num_calls = 0

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes now is thought, not answer."""
        return self._reasoning is not None and self._reasoning.is_reasoning

    def push(self, text: str, passage: Passage) -> None:
        """Take more text; add to the passage what is certain of it."""
        reasoning, content = ("", text) if self._reasoning is None else self._reasoning.push(text)
        passage.reasoning += reasoning
        self._read(content, passage)

    def finish(self, passage: Passage) -> None:
        """Add what was held back."""
        if self._reasoning is not None:
            reasoning, content = self._reasoning.finish()
            passage.reasoning += reasoning
            self._read(content, passage)
        if self._tools is not None:
            self._note(self._tools.finish(), passage)

    def _read(self, content: str, passage: Passage) -> None:
        if self._tools is None:
            passage.content += content
        elif content:
            self._note(self._tools.push(content), passage)

    def _note(self, events: Sequence[ToolEvent], passage: Passage) -> None:
        for event in events:
            begins_call = isinstance(event, CallStart)
            self.is_over |= begins_call and self._is_one_all and self.num_calls > 0
            if self.is_over:
                return
            match event:
                case Text(text):
                    passage.content += text
                case CallStart(index, call_id, name):
                    self.num_calls += 1
                    passage.tool_calls.append(ToolCallDelta(index=index, id=call_id, name=name))
                case CallArguments(index, delta):
                    passage.tool_calls.append(ToolCallDelta(index=index, arguments=delta))
