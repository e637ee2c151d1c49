"""Chunks gathered into whole answers: one chunk per choice, and the usage of all requests.

Knows no wire format. Next: openai_answers.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from moestro.api.chunks import Chunk, Finish, Token, ToolCallDelta, Usage


class Gathered:
    """Choices as they grow."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}

    def add(self, index: int, chunk: Chunk) -> None:
        """Add a chunk to the choice at `index`, which may differ from the chunk's own."""
        choice = self._choices.setdefault(index, _Choice())
        choice.texts.append(chunk.text)
        choice.reasonings.append(chunk.reasoning)
        choice.tokens += chunk.tokens
        choice.calls += chunk.tool_calls
        choice.finish = chunk.finish or choice.finish
        choice.stop = choice.stop if chunk.stop is None else chunk.stop

    def choices(self) -> list[Chunk]:
        """Return one chunk per choice, in order, with each tool call in one piece."""
        return [_join(index, choice) for index, choice in sorted(self._choices.items())]


def join_calls(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """Put the pieces of each tool call together, in the order in which the calls begin."""
    pieces: dict[int, list[ToolCallDelta]] = {}
    for delta in deltas:
        pieces.setdefault(delta.index, []).append(delta)
    return tuple(_join_call(place, each) for place, each in pieces.items())


def add_usages(usages: Sequence[Usage]) -> Usage:
    """Sum up several requests; experts are the mean over all their tokens."""
    if len(usages) == 1:
        return usages[0]
    known = [usage for usage in usages if usage.mean_experts is not None]
    weight = sum(usage.completion_tokens for usage in known)
    total = sum((usage.mean_experts or 0.0) * usage.completion_tokens for usage in known)
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        mean_experts=total / weight if weight else None,
        draft_tokens=sum(usage.draft_tokens for usage in usages),
        accepted_draft_tokens=sum(usage.accepted_draft_tokens for usage in usages),
    )


@dataclass
class _Choice:
    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)
    finish: Finish | None = None
    stop: str | int | None = None


def _join(index: int, choice: _Choice) -> Chunk:
    return Chunk(
        index=index,
        text="".join(choice.texts),
        reasoning="".join(choice.reasonings),
        tool_calls=join_calls(choice.calls),
        tokens=tuple(choice.tokens),
        finish=choice.finish,
        stop=choice.stop,
    )


def _join_call(place: int, pieces: Sequence[ToolCallDelta]) -> ToolCallDelta:
    first = pieces[0]
    arguments = "".join(piece.arguments for piece in pieces)
    return ToolCallDelta(index=place, id=first.id, name=first.name, arguments=arguments)
