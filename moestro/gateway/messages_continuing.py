"""A stream in Anthropic's own words that goes on at another backend: what that one is asked, and
how its events join in.

Pure. The request is the client's own, with the text so far as a begun last turn. Such a turn must
not end in a space: those told already are taken off what comes. Next: failover.py.
"""

from itertools import takewhile
from typing import Any

import msgspec

from moestro.gateway.asked import Asked
from moestro.gateway.events import read_data, write_event
from moestro.gateway.messages import MessagesTold

_LIMIT = "max_tokens"


def changes_to_continue_message(asked: Asked, text: str, num_tokens: int) -> dict[str, Any]:
    """Return the fields to change so that a backend goes on behind `text`."""
    changes: dict[str, Any] = {}
    limit = asked.number(_LIMIT)
    if limit is not None:
        changes[_LIMIT] = max(1, limit - num_tokens)
    turns = msgspec.json.decode(asked.fields["messages"])
    if turns[-1]["role"] == "assistant":
        # The client's own last turn is begun already.
        begun = turns.pop()["content"]
        blocks = [{"type": "text", "text": begun}] if isinstance(begun, str) else begun
    else:
        blocks = []
    if text.strip():
        blocks = [*blocks, {"type": "text", "text": text.rstrip()}]
    if blocks:
        turns.append({"role": "assistant", "content": blocks})
    return changes | {"messages": turns}


class MessageGraft:
    """Makes the events of a backend that came later look like those of the one that began."""

    def __init__(self, told: MessagesTold) -> None:
        self._has_begun = told.head is not None
        self._block = told.num_blocks - 1
        self._is_open = told.is_open
        # Blocks are counted on from those told; one that is open gets the next one's text.
        self._shift = self._block if self._is_open else told.num_blocks
        self._owed = told.text[len(told.text.rstrip()) :]
        self._num_before = told.go_on()

    def join(self, event: bytes) -> bytes:
        """Return an event as it goes on; none where it only opens what is open already."""
        data = read_data(event)
        said: Any = msgspec.json.decode(data) if data else None
        match said.get("type") if isinstance(said, dict) else None:
            case "message_start" if self._has_begun:
                return b""
            case "content_block_start":
                return self._start(said)
            case "content_block_delta" | "content_block_stop":
                return self._go_on(said)
            case "message_delta":
                return self._close() + self._end(said)
        return event

    def _start(self, said: dict[str, Any]) -> bytes:
        closing = b""
        if self._is_open:
            if (said.get("content_block") or {}).get("type") == "text":
                self._is_open = False
                return b""
            closing = self._close()
        return closing + self._write_block(said)

    def _go_on(self, said: dict[str, Any]) -> bytes:
        delta = said.get("delta") or {}
        text = delta.get("text")
        if isinstance(text, str) and self._owed:
            new = self._take_owed(text)
            if not new:
                return b""
            said["delta"] = delta | {"text": new}
        return self._write_block(said)

    def _take_owed(self, text: str) -> str:
        """Return a text without the spaces at its beginning that were told already."""
        pairs = zip(text, self._owed, strict=False)
        num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._owed = self._owed[num_same:] if num_same == len(text) else ""
        return text[num_same:]

    def _close(self) -> bytes:
        """Return the end of the block that was open, where nothing went on with it."""
        if not self._is_open:
            return b""
        self._is_open = False
        self._shift += 1
        return write_named({"type": "content_block_stop", "index": self._block})

    def _end(self, said: dict[str, Any]) -> bytes:
        usage = said.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("output_tokens"), int):
            said["usage"] = usage | {"output_tokens": usage["output_tokens"] + self._num_before}
        return write_named(said)

    def _write_block(self, said: dict[str, Any]) -> bytes:
        return write_named(said | {"index": said.get("index", 0) + self._shift})


def last_message_events(told: MessagesTold) -> bytes:
    """Write the events before the last of a message which has all its tokens."""
    stop = {"type": "content_block_stop", "index": told.num_blocks - 1}
    said = {
        "type": "message_delta",
        "delta": {"stop_reason": _LIMIT, "stop_sequence": None},
        "usage": {"output_tokens": told.num_tokens},
    }
    return (write_named(stop) if told.is_open else b"") + write_named(said)


def write_named(said: dict[str, Any]) -> bytes:
    """Write an event under the name of its type."""
    return f"event: {said['type']}\n".encode() + write_event(said)
