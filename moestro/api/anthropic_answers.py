"""An answer as Anthropic's clients read it: whole, or as the events of a stream.

The same object gives both, so that they cannot differ. Knows no requests and no HTTP. Next:
server/messages.py.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from moestro.api.chunks import Chunk, Finish, Started, ToolCallDelta, Usage

Body = dict[str, Any]

_STOP_REASONS: dict[Finish, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def error_body(status: int, message: str) -> Body:
    """Build the body of an error with an HTTP status."""
    fallback = "invalid_request_error" if status < 500 else "api_error"
    kind = _ERROR_TYPES.get(status, fallback)
    return {"type": "error", "error": {"type": kind, "message": message}}


@dataclass
class _Block:
    kind: Literal["thinking", "text", "tool_use"]
    call: ToolCallDelta | None = None
    pieces: list[str] = field(default_factory=list)

    def body(self) -> Body:
        said = "".join(self.pieces)
        if self.kind == "thinking":
            # Signed thoughts are for servers that trust no client: here there is nothing to sign.
            return {"type": "thinking", "thinking": said, "signature": ""}
        if self.call is None:
            return {"type": "text", "text": said}
        return {
            "type": "tool_use",
            "id": self.call.id,
            "name": self.call.name,
            "input": _parse_input(said),
        }

    def delta(self, piece: str) -> Body:
        if self.kind == "thinking":
            return {"type": "thinking_delta", "thinking": piece}
        if self.kind == "text":
            return {"type": "text_delta", "text": piece}
        return {"type": "input_json_delta", "partial_json": piece}


class MessageAnswer:
    """One answer as it grows: what comes in gives the events that tell of it.

    `body` is the whole as far as it has come.
    """

    def __init__(self, message_id: str, started: Started) -> None:
        self._id = message_id
        self._started = started
        self._blocks: list[_Block] = []
        self._finish: Finish | None = None
        self._stop: str | None = None
        self._usage = Usage(
            prompt_tokens=started.prompt_tokens,
            completion_tokens=0,
            cached_tokens=started.cached_tokens,
        )

    def start(self) -> list[Body]:
        """Return the first event."""
        return [{"type": "message_start", "message": self.body()}]

    def push(self, chunk: Chunk) -> list[Body]:
        """Take the next piece; return its events."""
        events = []
        if chunk.reasoning:
            events += self._write("thinking", chunk.reasoning)
        if chunk.text:
            events += self._write("text", chunk.text)
        for delta in chunk.tool_calls:
            events += self._write_call(delta)
        self._finish = chunk.finish or self._finish
        # Nobody can name a stop token here.
        self._stop = chunk.stop if isinstance(chunk.stop, str) else self._stop
        self._usage = chunk.usage or self._usage
        return events

    def end(self) -> list[Body]:
        """Return the last events."""
        reason = {"stop_reason": self._stop_reason(), "stop_sequence": self._stop}
        return [
            *self._close(),
            {"type": "message_delta", "delta": reason, "usage": self._usage_body()},
            {"type": "message_stop"},
        ]

    def fail(self, status: int, message: str) -> list[Body]:
        """Return the last event of an answer that cannot go on."""
        return [error_body(status, message)]

    def body(self) -> Body:
        """Return the message."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._started.model,
            "content": [block.body() for block in self._blocks],
            "stop_reason": self._stop_reason(),
            "stop_sequence": self._stop,
            "usage": self._usage_body(),
        }

    def _write(self, kind: Literal["thinking", "text"], piece: str) -> list[Body]:
        is_open = bool(self._blocks) and self._blocks[-1].kind == kind
        events = [] if is_open else self._open(_Block(kind))
        return [*events, self._add(piece)]

    def _write_call(self, delta: ToolCallDelta) -> list[Body]:
        latest = self._blocks[-1].call if self._blocks else None
        is_open = latest is not None and latest.index == delta.index
        events = [] if is_open else self._open(_Block("tool_use", call=delta))
        return [*events, self._add(delta.arguments)] if delta.arguments else events

    def _open(self, block: _Block) -> list[Body]:
        events = self._close()
        self._blocks.append(block)
        index = len(self._blocks) - 1
        start = {"type": "content_block_start", "index": index, "content_block": block.body()}
        return [*events, start]

    def _add(self, piece: str) -> Body:
        block = self._blocks[-1]
        block.pieces.append(piece)
        index = len(self._blocks) - 1
        return {"type": "content_block_delta", "index": index, "delta": block.delta(piece)}

    def _close(self) -> list[Body]:
        if not self._blocks:
            return []
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _stop_reason(self) -> str | None:
        if self._finish is None:
            return None
        return "stop_sequence" if self._stop is not None else _STOP_REASONS[self._finish]

    def _usage_body(self) -> Body:
        usage = self._usage
        return {
            # As Anthropic counts, what came out of the cache is no part of the input.
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
            "mean_experts": usage.mean_experts,
        }


def _parse_input(arguments: str) -> Body:
    # A model may write anything, or be cut off; what is no JSON object is kept as it is, by name.
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {"arguments": arguments}
    return value if isinstance(value, dict) else {"arguments": arguments}
