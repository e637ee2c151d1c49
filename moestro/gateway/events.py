"""Server-sent events as bytes: where they end, and what one of OpenAI's says.

No event goes on before it is whole, so nobody ever gets half of one. Next: told.py.
"""

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

_LONGEST_EVENT_BYTES = 4 * 1024**2
# Far beyond any context.
_MOST_TOKENS = 10**9
_DATA = b"data:"
# What may stand in an event beside its data, and makes it no less an event.
_OTHER_LINES = (b":", b"event:", b"id:", b"retry:")


class Garbage(ValueError):
    """What came is no event."""


class Unreadable(ValueError):
    """An event that may say something, in a form that is not known here."""


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

    index: int | None = 0
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


class _Said(msgspec.Struct):
    """What an event says, but for what it cost. Who says it is passed on, in whatever form."""

    id: Any = ""
    model: Any = ""
    created: Any = 0
    object: Any = ""
    choices: list[ChoiceEvent] | None = None
    error: Any = None


def as_count(value: int | None) -> int | None:
    """Return a number of tokens that a backend told; None where no answer can have it."""
    return value if value is not None and 0 <= value <= _MOST_TOKENS else None


class Piece(_Said):
    """What an event says; a whole answer says the same, but for its choices."""

    usage: Usage | None = None


_read_piece = msgspec.json.Decoder(Piece).decode
_read_said = msgspec.json.Decoder(_Said).decode


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
    """Return what an event of OpenAI's says; None for the end and comments.

    Garbage if it is no event, or its data is no JSON; Unreadable if it is a vendor's own.
    """
    data = read_data(event)
    if not data or data == b"[DONE]":
        return None
    try:
        return read_piece(data)
    except msgspec.ValidationError as error:
        raise Unreadable("an event in another form than OpenAI's") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Garbage("an event whose data is no JSON") from error


def read_piece(data: bytes) -> Piece:
    """Return what an object says; its usage only where that is in the form that is known.

    Errors are those of msgspec: ValidationError where the form of anything else is not.
    """
    try:
        return _read_piece(data)
    except msgspec.ValidationError:
        said = _read_said(data)
        return Piece(**{name: getattr(said, name) for name in said.__struct_fields__})


def is_end(event: bytes) -> bool:
    """Tell whether an event is the last one of OpenAI's streams."""
    return event.startswith(b"data:") and event[5:].strip() == b"[DONE]"


def write_event(data: Any) -> bytes:  # noqa: ANN401 (whatever JSON can say)
    """Write one event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"
