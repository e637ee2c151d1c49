"""One choice of an answer in OpenAI's words: for completions, and for chats.

Knows nothing of the envelope around choices. Next: openai_answers.py, openai_logprobs.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moestro.api.chunks import Chunk, Token, ToolCallDelta
from moestro.api.openai_logprobs import TextOffsets, chat_logprobs, completion_logprobs
from moestro.api.whole import join_calls


@dataclass(frozen=True, kw_only=True)
class View:
    """What of its tokens a caller wants to see, and the text that each choice begins with."""

    has_logprobs: bool = False
    has_xray: bool = False
    echo: str = ""


class Choices(Protocol):
    """How one kind of answer writes its choices."""

    @property
    def whole_object(self) -> str:
        """What a whole answer calls itself."""

    @property
    def piece_object(self) -> str:
        """What an event of a stream calls itself."""

    def whole(self, chunk: Chunk) -> dict[str, Any]:
        """Write a whole choice."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Write what a stream says of a choice before its first token."""

    def piece(self, index: int, chunk: Chunk) -> dict[str, Any] | None:
        """Write a piece of a choice; None where a caller would see nothing of it."""


class CompletionChoices:
    """Choices of `/v1/completions`."""

    whole_object = "text_completion"
    piece_object = "text_completion"

    def __init__(self, view: View) -> None:
        self._view = view
        self._offsets: dict[int, TextOffsets] = {}

    def whole(self, chunk: Chunk) -> dict[str, Any]:
        """Write a whole choice."""
        return self._write(chunk.index, chunk, is_whole=True)

    def opening(self, index: int) -> None:
        """Write nothing: a completion begins with its text."""

    def piece(self, index: int, chunk: Chunk) -> dict[str, Any] | None:
        """Write a piece of a choice; None where a caller would see nothing of it."""
        return self._write(index, chunk) if _is_visible(chunk, self._view) else None

    def _write(self, index: int, chunk: Chunk, *, is_whole: bool = False) -> dict[str, Any]:
        logprobs = None
        # A whole answer without a token has none to tell of, which is not the same as untold.
        if self._view.has_logprobs and (chunk.tokens or is_whole):
            offsets = self._offsets.setdefault(index, TextOffsets())
            logprobs = completion_logprobs(chunk.tokens, offsets)
        choice = {
            "index": index,
            # A completion has no place of its own for reasoning, and must not lose it.
            "text": chunk.reasoning + chunk.text,
            "logprobs": logprobs,
            "finish_reason": chunk.finish,
            "stop_reason": chunk.stop,
        }
        return choice | _xray(chunk.tokens, self._view)


class ChatChoices:
    """Choices of `/v1/chat/completions`."""

    whole_object = "chat.completion"
    piece_object = "chat.completion.chunk"

    def __init__(self, view: View) -> None:
        self._view = view

    def whole(self, chunk: Chunk) -> dict[str, Any]:
        """Write a whole choice."""
        text = self._view.echo + chunk.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if chunk.reasoning:
            message["reasoning_content"] = chunk.reasoning
        if chunk.tool_calls:
            message["content"] = text or None
            message["tool_calls"] = [_call(call) for call in chunk.tool_calls]
        return {"index": chunk.index, "message": message} | self._rest(chunk, is_whole=True)

    def opening(self, index: int) -> dict[str, Any]:
        """Write whose turn it is."""
        delta = {"role": "assistant", "content": self._view.echo}
        return {"index": index, "delta": delta} | self._rest(Chunk())

    def piece(self, index: int, chunk: Chunk) -> dict[str, Any] | None:
        """Write a piece of a choice; None where a caller would see nothing of it."""
        if not _is_visible(chunk, self._view):
            return None
        delta: dict[str, Any] = {}
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.tool_calls:
            # One piece of each call, as OpenAI sends it: some clients read the first piece only.
            delta["tool_calls"] = [_call_delta(call) for call in join_calls(chunk.tool_calls)]
        return {"index": index, "delta": delta} | self._rest(chunk)

    def _rest(self, chunk: Chunk, *, is_whole: bool = False) -> dict[str, Any]:
        has_logprobs = self._view.has_logprobs and (chunk.tokens or is_whole)
        rest = {
            "logprobs": chat_logprobs(chunk.tokens) if has_logprobs else None,
            "finish_reason": chunk.finish,
            "stop_reason": chunk.stop,
        }
        return rest | _xray(chunk.tokens, self._view)


def _is_visible(chunk: Chunk, view: View) -> bool:
    # Half a character has no text yet, but its token may be asked for.
    has_tokens = chunk.tokens and (view.has_logprobs or view.has_xray)
    return bool(chunk.text or chunk.reasoning or chunk.tool_calls or chunk.finish or has_tokens)


def _call(call: ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index} | _call(call)


def _xray(tokens: Sequence[Token], view: View) -> dict[str, Any]:
    if not view.has_xray:
        return {}
    return {
        "xray": [
            {
                "text": token.text,
                "num_experts": token.num_experts,
                "experts": [
                    [{"expert": visit.expert, "weight": visit.weight} for visit in layer]
                    for layer in token.visits
                ],
            }
            for token in tokens
        ]
    }
