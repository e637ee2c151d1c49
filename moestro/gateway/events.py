"""Server-sent events as bytes: where they end, and what one of OpenAI's says.

No event goes on before it is whole, so nobody ever gets half of one. Next: told.py.
"""

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

_LONGEST_EVENT_BYTES = 4 * 1024**2
_DATA = b"data:"
# What may stand in an event beside its data, and makes it no less an event.
_OTHER_LINES = (b":", b"event:", b"id:", b"retry:")


class Garbage(ValueError):
    """What came is no event."""


class Cutter:
    """Cuts a stream of bytes into blocks of whole events."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return as many as make whole events, with those left over before."""
        if self.rest:
            data = self.rest + data
            self.rest = b""
        if data.endswith(b"\n\n"):
            return data
        end = max(_after(data, b"\n\n"), _after(data, b"\r\n\r\n"))
        if len(data) - end > _LONGEST_EVENT_BYTES:
            raise Garbage("an event without end")
        self.rest = data[end:]
        return data[:end]


def _after(data: bytes, border: bytes) -> int:
    place = data.rfind(border)
    return 0 if place < 0 else place + len(border)


def split(block: bytes) -> list[bytes]:
    """Return the events of a block, each as it came."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    pieces = block.split(b"\n\n")
    return [piece + b"\n\n" for piece in pieces if piece]


class Delta(msgspec.Struct):
    """What an event adds to a turn."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    refusal: Any = None


class ChoiceEvent(msgspec.Struct):
    """What an event adds to a choice: of a chat its `delta`, of a completion its `text`."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class Details(msgspec.Struct):
    """Of a prompt's tokens, those that were known."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """What an answer cost."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Piece(msgspec.Struct):
    """What an event says; a whole answer says the same, but for its choices."""

    id: str = ""
    model: str = ""
    created: int | float = 0
    object: str = ""
    choices: list[ChoiceEvent] | None = None
    usage: Usage | None = None
    error: Any = None


_read_piece = msgspec.json.Decoder(Piece).decode


def read_data(event: bytes) -> bytes:
    """Return an event's data, empty where it has none; Garbage if it is no event."""
    if event.startswith(b"data: ") and event.count(b"\n") == 2:
        return event[6:-2]
    data = []
    for line in event.splitlines():
        if line.startswith(_DATA):
            data.append(line[len(_DATA) :].removeprefix(b" "))
        elif line and not line.startswith(_OTHER_LINES):
            raise Garbage("a line that is none of an event's")
    return b"\n".join(data)


def read_event(event: bytes) -> Piece | None:
    """Return what an event of OpenAI's says; None for the end, comments, and what is unknown.

    Garbage if it is no event, or its data is no JSON.
    """
    data = read_data(event)
    if not data or data == b"[DONE]":
        return None
    try:
        return _read_piece(data)
    except msgspec.ValidationError:
        # Not what is known, but JSON: it may be a vendor's own.
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Garbage("an event whose data is no JSON") from error


def is_end(event: bytes) -> bool:
    """Tell whether an event is the last one of OpenAI's streams."""
    return event.startswith(b"data:") and event[5:].strip() == b"[DONE]"


def write_event(data: Any) -> bytes:  # noqa: ANN401 (whatever JSON can say)
    """Write one event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"
