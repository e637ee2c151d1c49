"""The exact bytes that each token id stands for, in either family of `tokenizer.json`.

Byte-level tokenizers (GPT, DeepSeek) spell bytes as printable characters; byte-fallback ones
(Llama) spell text, and `<0x0A>` where they have no text. Knows nothing of encoding. Next:
tokenizer.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from moestro.errors import CheckpointError
from moestro.text.byte_level import byte_characters

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Bytes by token id; special tokens and unused ids stand for none.

    `has_lead_space`: the tokenizer puts a space before every text, so whoever reads a whole text
    drops it.
    """

    table: tuple[bytes, ...]
    has_lead_space: bool

    def read(self, token_id: int) -> bytes:
        """Return one token's bytes; an id that the tokenizer lacks stands for none."""
        return self.table[token_id] if 0 <= token_id < len(self.table) else b""


def build_pieces(tokenizer: tokenizers.Tokenizer, decoder: Mapping[str, Any] | None) -> Pieces:
    """Spell out every token as the `decoder` section of its tokenizer.json says."""
    steps = _flatten(decoder)
    kinds = {step.get("type") for step in steps}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    if "ByteLevel" in kinds:
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        for token, token_id in vocabulary.items():
            table[token_id] = _read_byte_level(token, byte_of)
    elif kinds & {"ByteFallback", "Metaspace"}:
        for token, token_id in vocabulary.items():
            table[token_id] = _read_fallback(token, steps)
    else:
        found = ", ".join(sorted(map(str, kinds))) or "missing"
        raise CheckpointError(
            f"its decoder is {found}: Moestro reads byte-level and byte-fallback tokenizers"
        )
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        table[token_id] = b"" if added.special else added.content.encode()
    return Pieces(table=tuple(table), has_lead_space=_adds_space(steps))


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not decoder:
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder.get("decoders", ()) for step in _flatten(part)]


def _read_byte_level(token: str, byte_of: Mapping[str, int]) -> bytes:
    try:
        return bytes(byte_of[character] for character in token)
    except KeyError:
        return token.encode()


def _read_fallback(token: str, steps: list[Mapping[str, Any]]) -> bytes:
    for step in steps:
        kind = step.get("type")
        byte = _BYTE.fullmatch(token) if kind == "ByteFallback" else None
        if byte:
            return bytes([int(byte.group(1), 16)])
        if kind == "Replace":
            token = token.replace(step["pattern"].get("String", "\u2581"), step["content"])
        elif kind == "Metaspace":
            token = token.replace(step["replacement"], " ")
    return token.encode()


def _adds_space(steps: list[Mapping[str, Any]]) -> bool:
    for step in steps:
        if step.get("type") == "Strip" and step.get("content") == " " and step.get("start"):
            return True
        if step.get("type") == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never")
    return False
