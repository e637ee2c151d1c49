"""Made-up tokens: text cut into pieces, with log-probabilities and experts drawn from a hash.

A token's id is a 1 followed by its bytes, read as a number, so that ids and text map both ways
without a vocabulary. The same token at the same place always gets the same numbers. Next:
scripted.py.
"""

import math
import random
import re
from collections.abc import Sequence
from zlib import crc32

from moestro.api.cards import ModelCard
from moestro.api.chunks import Alternative, Token, Visit
from moestro.errors import DataError

# Six bytes after the 1: an id stays a number that JavaScript holds exactly.
MOST_BYTES = 6
_PIECE = re.compile(rb" ?[^\s]+|\s")
_WORDS = (b" the", b" a", b"\n", b" model", b" one", b"(", b" of", b".", b" self", b" return")


def encode(text: str) -> list[int]:
    """Cut text into tokens: a word with the space before it, at most six bytes of it at a time."""
    data = text.encode("utf-8", errors="replace")
    ids = []
    for piece in _PIECE.findall(data):
        parts = (piece[start : start + MOST_BYTES] for start in range(0, len(piece), MOST_BYTES))
        ids += [int.from_bytes(b"\x01" + part) for part in parts]
    return ids


def read_bytes(token_id: int) -> bytes:
    """Return the bytes that a token id stands for."""
    data = token_id.to_bytes(8) if 0 <= token_id < 2**64 else b""
    mark, *rest = data.lstrip(b"\x00") or b"\x00"
    if mark != 1 or len(rest) > MOST_BYTES:
        raise DataError(f"token id is {token_id}: no text has it; use ids from /tokenize")
    return bytes(rest)


def decode(token_ids: Sequence[int]) -> str:
    """Return the text of token ids."""
    return b"".join(map(read_bytes, token_ids)).decode("utf-8", errors="replace")


def show(token_id: int) -> str:
    """Return a token as a person reads it."""
    return _show(read_bytes(token_id))


def build_token(
    token_id: int, place: int, card: ModelCard, *, top: int | None, experts: float
) -> Token:
    """Make up what a model would have said of the token at a place of its text."""
    data = read_bytes(token_id)
    draw = crc32(data + place.to_bytes(8))
    probability = 0.34 + 0.65 * (draw % 1000) / 1000
    visits = tuple(_visits(draw, layer, card, experts) for layer in range(card.num_moe_layers))
    return Token(
        token_id=token_id,
        text=_show(data),
        data=data,
        logprob=None if top is None else math.log(probability),
        alternatives=_alternatives(data, probability, draw, top or 0),
        num_experts=sum(map(len, visits)) / len(visits) if visits else None,
        visits=visits,
    )


def _alternatives(data: bytes, probability: float, draw: int, top: int) -> tuple[Alternative, ...]:
    # The token taken is the likeliest; each further one is half as likely as the one before.
    words = [data]
    words += [word for word in _WORDS[draw % 10 :] + _WORDS[: draw % 10] if word != data]
    words += [b"~%d" % rank for rank in range(len(words), top)]
    chances = [probability, *((1 - probability) / 2**rank for rank in range(1, top))]
    return tuple(
        Alternative(
            token_id=int.from_bytes(b"\x01" + word),
            text=_show(word),
            data=word,
            logprob=math.log(chance),
        )
        for word, chance in zip(words[:top], chances, strict=False)
    )


def _show(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def _visits(draw: int, layer: int, card: ModelCard, experts: float) -> tuple[Visit, ...]:
    generator = random.Random(crc32(layer.to_bytes(4), draw))
    # The whole part always, one more as often as the fraction says.
    num = int(experts) + (generator.random() < experts % 1)
    chosen = generator.sample(range(card.num_experts), min(num, card.num_experts))
    total = sum(1 / (slot + 1) for slot in range(len(chosen)))
    return tuple(
        Visit(expert=expert, weight=round(1 / (slot + 1) / total, 4))
        for slot, expert in enumerate(chosen)
    )
