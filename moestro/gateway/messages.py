"""Anthropic's own streams passed on as they came, to a client that speaks that dialect too.

They are watched for their end and for errors, but not continued elsewhere. Next: told.py.
"""

from typing import Any

import msgspec

from moestro.gateway.asked import Asked
from moestro.gateway.events import Details, Garbage, Piece, Usage, read_data
from moestro.gateway.told import BrokenAnswer, Told


class _Counts(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Message(msgspec.Struct):
    id: str = ""
    model: str = ""
    content: list[Any] | None = None
    usage: _Counts | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    message: _Message | None = None
    delta: _Delta | None = None
    usage: _Counts | None = None


_read_event = msgspec.json.Decoder(_Event).decode
_read_message = msgspec.json.Decoder(_Message).decode


class MessagesTold(Told):
    """What a client has been told in Anthropic's words."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = _Counts(input_tokens=0, output_tokens=0)

    def add(self, event: bytes) -> None:
        """Take the next event, before it is sent; Garbage if it must not be."""
        data = read_data(event)
        if not data:
            return
        try:
            said = _read_event(data)
        except msgspec.ValidationError:
            return
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Garbage("an event whose data is no JSON") from error
        self._take_event(said)

    def may_continue(self, asked: Asked) -> bool:
        """Tell that it may not: its blocks are not taken apart."""
        return False

    def _take_event(self, said: _Event) -> None:
        match said.type:
            case "message_start" if said.message is not None:
                self.head = Piece(id=said.message.id, model=said.message.model)
                self._add_counts(said.message.usage)
            case "content_block_delta":
                self.num_tokens += 1
            case "message_delta":
                self._add_counts(said.usage)
                self.is_finished = said.delta is not None and said.delta.stop_reason is not None
            case "message_stop":
                self.has_ended = True
            case "error":
                raise BrokenAnswer("the backend failed in the middle of its answer")

    def _add_counts(self, counts: _Counts | None) -> None:
        if counts is not None:
            for name in counts.__struct_fields__:
                value = getattr(counts, name)
                if value is not None:
                    setattr(self._counts, name, value)
            self.usage = _usage_of(self._counts)


def read_message(body: bytes) -> Piece | None:
    """Return what is known of a whole message; None if it is none."""
    try:
        said = _read_message(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if said.content is None:
        return None
    return Piece(model=said.model, usage=_usage_of(said.usage or _Counts()))


def _usage_of(counts: _Counts) -> Usage:
    cached = counts.cache_read_input_tokens or 0
    prompt = (counts.input_tokens or 0) + cached + (counts.cache_creation_input_tokens or 0)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=counts.output_tokens or 0,
        prompt_tokens_details=Details(cached_tokens=cached),
    )
