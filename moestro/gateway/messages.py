"""Anthropic's own streams passed on as they came, to a client that speaks that dialect too.

They are watched for their end, for errors, and for a text that another one can go on with. Next:
told.py, messages_continuing.py.
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
    type: str = ""
    text: str | None = None
    stop_reason: str | None = None


class _Block(msgspec.Struct):
    type: str = ""


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    delta: _Delta | None = None
    content_block: _Block | None = None
    usage: _Counts | None = None


_read_event = msgspec.json.Decoder(_Event).decode
_read_message = msgspec.json.Decoder(_Message).decode


class MessagesTold(Told):
    """What a client has been told in Anthropic's words: `num_blocks`, and whether one `is_open`."""

    def __init__(self) -> None:
        super().__init__()
        self.num_blocks = 0
        self.is_open = False
        # Whether the next block is the rest of the one that is open.
        self._is_rest_next = False
        self._counts = _Counts(input_tokens=0, output_tokens=0)

    def add(self, event: bytes) -> None:
        """Take the next event, before it is sent; Garbage if it must not be."""
        data = read_data(event)
        if not data:
            return
        try:
            said = _read_event(data)
        except msgspec.ValidationError as error:
            self._take_unreadable(error)
            return
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Garbage("an event whose data is no JSON") from error
        self._take_event(said)

    def go_on(self) -> int:
        """Expect another backend's events from here on; return how many tokens came before."""
        self._is_rest_next = self.is_open
        self._counts = _Counts(input_tokens=0, output_tokens=0)
        return super().go_on()

    def may_continue(self, asked: Asked) -> bool:
        """Tell whether one text is all that was told; a turn that is begun has no thoughts."""
        thinking = asked.look("thinking")
        thinks = isinstance(thinking, dict) and thinking.get("type") != "disabled"
        is_one = self._is_plain and self._is_single and not thinks
        return is_one and not asked.is_constrained

    def _take_event(self, said: _Event) -> None:
        match said.type:
            case "message_start" if said.message is not None:
                self.head = Piece(id=said.message.id, model=said.message.model)
                self._add_counts(said.message.usage)
            case "content_block_start":
                self._start_block(said.content_block)
            case "content_block_delta":
                self._num_said += 1
                if said.delta is not None and said.delta.text is not None:
                    self._texts.append(said.delta.text)
                else:
                    self._is_plain = False
            case "content_block_stop":
                self.is_open = False
            case "message_delta":
                self._add_counts(said.usage)
                self.is_finished = said.delta is not None and said.delta.stop_reason is not None
            case "message_stop":
                self.has_ended = True
            case "error":
                raise BrokenAnswer("the backend failed in the middle of its answer")

    def _start_block(self, block: _Block | None) -> None:
        is_text = block is not None and block.type == "text"
        if not is_text:
            # A tool's name, say, cannot be taken back.
            self._is_plain = False
            self._num_said += 1
        if not (is_text and self._is_rest_next):
            self.num_blocks += 1
            self._is_single = self.num_blocks == 1
        self.is_open, self._is_rest_next = True, False

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
