"""Chunks -> OpenAI's answers, whole or as the events of a stream.

What completions and chats have in common; where they differ is in openai_choices.py. Knows no
HTTP. Next: openai_choices.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moestro.api.chunks import Chunk, Started, Usage
from moestro.api.openai_choices import Choices
from moestro.api.whole import Gathered, add_usages

UsageEvents = Literal["none", "last", "all"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """What all events of an answer say: its id, and when it began in seconds since 1970."""

    id: str
    created: int


class HttpAnswer:
    """One answer to one HTTP request, which may be several requests to the backend.

    Choice `k` of prompt `p` has index `p * choices_per_prompt + k`.
    """

    def __init__(
        self,
        head: Head,
        choices: Choices,
        *,
        choices_per_prompt: int,
        usage_events: UsageEvents = "none",
    ) -> None:
        """`usage_events`: which events of a stream tell what the request has cost so far."""
        self.started: Started | None = None
        self._head = head
        self._choices = choices
        self._choices_per_prompt = choices_per_prompt
        self._usage_events = usage_events
        self._gathered = Gathered()
        self._usages: list[Usage] = []
        self._so_far = Usage(prompt_tokens=0, completion_tokens=0)

    @property
    def usage(self) -> Usage:
        """What it has cost, as far as is known."""
        if not self._usages:
            return Usage(prompt_tokens=0, completion_tokens=0)
        return add_usages(self._usages)

    def gather(self, prompt: int, piece: Started | Chunk) -> None:
        """Take a piece of an answer that is sent whole."""
        if isinstance(piece, Started):
            self.started = self.started or piece
            return
        self._note(piece)
        if _is_of_a_choice(piece):
            self._gathered.add(self._index(prompt, piece.index), piece)

    def whole(self) -> dict[str, Any]:
        """Return the answer that was gathered."""
        choices = [self._choices.whole(chunk) for chunk in self._gathered.choices()]
        usage = write_usage(self.usage)
        return self._envelope(self._choices.whole_object, choices) | {"usage": usage}

    def events(self, prompt: int, piece: Started | Chunk) -> Iterator[dict[str, Any]]:
        """Yield what a stream sends for a piece."""
        if isinstance(piece, Started):
            self.started = self.started or piece
            self._count(piece.prompt_tokens, 0, piece.cached_tokens)
            for choice in range(self._choices_per_prompt):
                opening = self._choices.opening(self._index(prompt, choice))
                if opening is not None:
                    yield self._event([opening])
            return
        self._note(piece)
        self._count(0, 0 if piece.is_echo else len(piece.tokens))
        if _is_of_a_choice(piece):
            written = self._choices.piece(self._index(prompt, piece.index), piece)
            if written is not None:
                yield self._event([written])

    def last_events(self) -> Iterator[dict[str, Any]]:
        """Yield what a stream ends with."""
        if self._usage_events != "none":
            yield self._event([]) | {"usage": write_usage(self.usage)}

    def _note(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            self._usages.append(chunk.usage)

    def _count(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> None:
        known = self._so_far
        self._so_far = Usage(
            prompt_tokens=known.prompt_tokens + prompt_tokens,
            completion_tokens=known.completion_tokens + completion_tokens,
            cached_tokens=known.cached_tokens + cached_tokens,
        )

    def _index(self, prompt: int, choice: int) -> int:
        return prompt * self._choices_per_prompt + choice

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        event = self._envelope(self._choices.piece_object, choices)
        if self._usage_events == "none":
            return event
        is_told = self._usage_events == "all"
        return event | {"usage": write_usage(self._so_far) if is_told else None}

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._head.id,
            "object": kind,
            "created": self._head.created,
            "model": self.started.model if self.started is not None else "",
            "choices": choices,
        }


def write_usage(usage: Usage) -> Mapping[str, Any]:
    """Write a usage as OpenAI does, with the mean number of experts per token."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "draft_tokens": usage.draft_tokens,
            "accepted_draft_tokens": usage.accepted_draft_tokens,
        },
        "mean_experts": usage.mean_experts,
    }


def _is_of_a_choice(chunk: Chunk) -> bool:
    has_words = chunk.text or chunk.reasoning or chunk.tool_calls or chunk.tokens
    return bool(has_words or chunk.finish)
