"""What a model thinks before it answers, apart from the answer: `<think>...</think>`.

Only thoughts at an answer's beginning count: the same tags further on are text. White space around
a tag belongs to neither side. Tags must arrive as text. Knows no model. Next: tools.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningTags:
    """The texts between which a family of models thinks."""

    begin: str
    end: str


THINK = ReasoningTags("<think>", "</think>")
_KNOWN = (
    THINK,
    ReasoningTags("<thinking>", "</thinking>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)


def detect_tags(template_source: str) -> ReasoningTags | None:
    """Tell from a chat template's text how its model marks its thoughts."""
    return next((tags for tags in _KNOWN if tags.end in template_source), None)


def is_open(prompt: str, tags: ReasoningTags = THINK) -> bool:
    """Tell whether the prompt itself begins the thoughts, so that the model writes no tag."""
    return prompt.rstrip().endswith(tags.begin)


class ReasoningStream:
    """One answer as it grows, split in two; borders between texts change nothing but pieces."""

    def __init__(self, opened: bool, tags: ReasoningTags = THINK) -> None:
        """Start an answer; `opened`: the prompt has begun the thoughts, as DeepSeek-R1's does."""
        self.is_reasoning = opened
        self._tags = tags
        self._held = ""
        self._may_begin = not opened
        # White space after a tag is dropped, and before the end tag too.
        self._at_start = opened

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; return thoughts and answer, as far as they are certain now."""
        self._held += text
        if self._may_begin and not self._find_begin():
            return "", ""
        reasoning = self._take_reasoning() if self.is_reasoning else ""
        return reasoning, "" if self.is_reasoning else self._take_rest()

    def finish(self) -> tuple[str, str]:
        """Return what was held back; thoughts that never ended stay thoughts."""
        held, self._held = self._held, ""
        return (held, "") if self.is_reasoning else ("", held)

    def _find_begin(self) -> bool:
        """Decide, once enough has come, whether the answer begins with thoughts."""
        text = self._held.lstrip()
        if text.startswith(self._tags.begin):
            self._held = text.removeprefix(self._tags.begin)
            self.is_reasoning = self._at_start = True
        elif self._tags.begin.startswith(text):
            return False
        self._may_begin = False
        return True

    def _take_reasoning(self) -> str:
        if self._at_start:
            self._held = self._held.lstrip()
            self._at_start = not self._held
        before, tag, after = self._held.partition(self._tags.end)
        if tag:
            self.is_reasoning, self._held, self._at_start = False, after, True
            return before.rstrip()
        cut = len(self._held) - _possible_start(self._held, self._tags.end)
        certain = self._held[:cut].rstrip()
        self._held = self._held[len(certain) :]
        return certain

    def _take_rest(self) -> str:
        if self._at_start:
            self._held = self._held.lstrip()
            self._at_start = not self._held
        text, self._held = self._held, ""
        return text


def _possible_start(text: str, tag: str) -> int:
    sizes = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((size for size in sizes if tag.startswith(text[-size:])), 0)
