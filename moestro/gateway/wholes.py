"""A backend's whole answer, checked: is it one of what was asked for, and what is known of it?

Next: legs.py, events.py.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from moestro.gateway.asked import Kind
from moestro.gateway.events import Piece, Usage, read_piece
from moestro.gateway.faults import Fault
from moestro.gateway.messages import read_message


class _Embeddings(msgspec.Struct):
    data: list[msgspec.Raw]
    model: str = ""
    usage: Usage | None = None


class _Count(msgspec.Struct):
    input_tokens: int


class _Tokens(msgspec.Struct):
    count: int
    tokens: list[int]


class _Text(msgspec.Struct):
    prompt: str


_read_embeddings = msgspec.json.Decoder(_Embeddings).decode
_read_count = msgspec.json.Decoder(_Count).decode
_read_tokens = msgspec.json.Decoder(_Tokens).decode
_read_text = msgspec.json.Decoder(_Text).decode
# What costs nothing.
_FREE_PIECE = Piece(usage=Usage(prompt_tokens=0, completion_tokens=0))


def read_whole(kind: Kind, body: bytes, name: str) -> Piece | None:
    """Return what is known of an answer, None of a vendor's own kind; a Fault if it is none."""
    # What is skipped as unknown is not looked at otherwise, and a client could not read it.
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Fault("garbage", f"{name} answered with what is no UTF-8") from error
    match kind:
        case "messages":
            return _read_message(body, name)
        case "embeddings":
            return _read_vectors(body, name)
        case "count":
            return _read_number(body, name)
        case "tokenize":
            return _read_cut(_read_tokens, body, name, "tokens")
        case "detokenize":
            return _read_cut(_read_text, body, name, "text")
        case _:
            return _read_answer(body, name)


def _read_answer(body: bytes, name: str) -> Piece | None:
    try:
        piece = read_piece(body)
    except msgspec.ValidationError as error:
        said: Any = msgspec.json.decode(body)
        if isinstance(said, dict) and said.get("choices"):
            return None
        raise Fault("garbage", f"{name} answered with something else than an answer") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Fault("garbage", f"{name} answered with something else than JSON") from error
    if piece.error is not None:
        raise Fault("status", f"{name} answered with an error")
    if not piece.choices:
        raise Fault("garbage", f"{name} answered with something else than an answer")
    return piece


def _read_message(body: bytes, name: str) -> Piece:
    piece = read_message(body)
    if piece is None:
        raise Fault("garbage", f"{name} answered with something else than a message")
    return piece


def _read_vectors(body: bytes, name: str) -> Piece:
    try:
        said = _read_embeddings(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Fault("garbage", f"{name} answered with something else than embeddings") from error
    usage = said.usage
    if usage is not None:
        # Many leave out what is always 0.
        usage = Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=0)
    return Piece(model=said.model, usage=usage)


def _read_number(body: bytes, name: str) -> Piece:
    try:
        _read_count(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Fault("garbage", f"{name} answered with something else than a count") from error
    return _FREE_PIECE


def _read_cut(read: Callable[[bytes], object], body: bytes, name: str, what: str) -> Piece:
    try:
        read(body)
    except msgspec.ValidationError as error:
        # Some servers have the same path for other fields, and passed over those that were sent.
        raise Fault("absent", f"{name} tells {what} in another form than vLLM") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Fault("garbage", f"{name} answered with something else than JSON") from error
    return _FREE_PIECE
