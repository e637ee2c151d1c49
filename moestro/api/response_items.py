"""The items of a response as they grow: a message, a train of thought, a function call.

Each tells in events how it begins, goes on and ends. Knows nothing of the response around them.
Next: responses_answers.py.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from moestro.api.chunks import Token, ToolCallDelta
from moestro.api.openai_logprobs import chat_logprobs

Body = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class Item(Protocol):
    """One item; its events lack what the response adds: item, place and sequence number."""

    id: str

    def body(self, status: Status) -> Body:
        """Return the item as far as it has come."""

    def opening(self) -> list[Body]:
        """Return what follows the announcement that the item exists."""

    def add(self, piece: str, tokens: Sequence[Token] = ()) -> Body:
        """Take more text; return its event."""

    def closing(self) -> list[Body]:
        """Return what goes before the announcement that the item is done."""


class MessageItem:
    """Text for the user."""

    def __init__(self, item_id: str, *, has_logprobs: bool) -> None:
        self.id = item_id
        self._has_logprobs = has_logprobs
        self._pieces: list[str] = []
        self._tokens: list[Token] = []

    def body(self, status: Status) -> Body:
        """Return the message."""
        content = [self._part()] if self._pieces else []
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def opening(self) -> list[Body]:
        """Return the part's begin."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [{"type": "response.content_part.added", "content_index": 0, "part": part}]

    def add(self, piece: str, tokens: Sequence[Token] = ()) -> Body:
        """Take more text, with the tokens that it came from."""
        self._pieces.append(piece)
        self._tokens += tokens
        return {
            "type": "response.output_text.delta",
            "content_index": 0,
            "delta": piece,
            "logprobs": self._logprobs(tokens),
        }

    def closing(self) -> list[Body]:
        """Return the text and the part as they have become."""
        part = self._part()
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            {"type": "response.output_text.done", "content_index": 0} | done,
            {"type": "response.content_part.done", "content_index": 0, "part": part},
        ]

    def _part(self) -> Body:
        text = "".join(self._pieces)
        logprobs = self._logprobs(self._tokens)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, tokens: Sequence[Token]) -> list[Body]:
        written: list[Body] = chat_logprobs(tokens)["content"] if self._has_logprobs else []
        return written


class ReasoningItem:
    """What the model thinks before it answers."""

    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self._pieces: list[str] = []

    def body(self, status: Status) -> Body:
        """Return the train of thought."""
        content = [self._part()] if self._pieces else []
        return {
            "id": self.id,
            "type": "reasoning",
            "summary": [],
            "content": content,
            "status": status,
        }

    def opening(self) -> list[Body]:
        """Return the part's begin."""
        part = {"type": "reasoning_text", "text": ""}
        return [{"type": "response.content_part.added", "content_index": 0, "part": part}]

    def add(self, piece: str, tokens: Sequence[Token] = ()) -> Body:
        """Take more thoughts."""
        self._pieces.append(piece)
        return {"type": "response.reasoning_text.delta", "content_index": 0, "delta": piece}

    def closing(self) -> list[Body]:
        """Return the thoughts and the part as they have become."""
        part = self._part()
        return [
            {"type": "response.reasoning_text.done", "content_index": 0, "text": part["text"]},
            {"type": "response.content_part.done", "content_index": 0, "part": part},
        ]

    def _part(self) -> Body:
        return {"type": "reasoning_text", "text": "".join(self._pieces)}


class CallItem:
    """A function to call."""

    def __init__(self, item_id: str, call: ToolCallDelta) -> None:
        self.index = call.index
        self.id = item_id
        self._call = call
        self._pieces: list[str] = []

    def body(self, status: Status) -> Body:
        """Return the call."""
        return {
            "id": self.id,
            "type": "function_call",
            "call_id": self._call.id,
            "name": self._call.name,
            "arguments": "".join(self._pieces),
            "status": status,
        }

    def opening(self) -> list[Body]:
        """Return nothing: a call has no parts."""
        return []

    def add(self, piece: str, tokens: Sequence[Token] = ()) -> Body:
        """Take more of the arguments."""
        self._pieces.append(piece)
        return {"type": "response.function_call_arguments.delta", "delta": piece}

    def closing(self) -> list[Body]:
        """Return the arguments as they have become."""
        arguments = "".join(self._pieces)
        done = {"name": self._call.name, "arguments": arguments}
        return [{"type": "response.function_call_arguments.done"} | done]
