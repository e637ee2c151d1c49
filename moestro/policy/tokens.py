"""A text in lower case, read once: its tokens' codes and sizes.

A token is a word, a number or a sign, its code a checksum (CRC-32). That is linear: what each byte
adds depends on its distance from the token's end only, and is summed bit by bit. So all tokens are
found and coded side by side, and no text is made for any. Where words stand without spaces between
them, each letter is one. Knows no buckets. Next: features.py.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]
Places = NDArray[np.intp]
Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

# Kinds of characters: from letters on they make tokens; of odd ones `read_one_by_one` must judge.
_SPACE, _LINE, _LETTER, _DIGIT, _SIGN, _ODD = range(6)
# Below are Latin, Greek, Cyrillic, Arabic and Indian letters, punctuation, arrows and operators.
_NUM_KNOWN = 0x2300
# Longer tokens are no words, and rare.
_LONGEST = 32
_EMPTY = np.array([zlib.crc32(bytes(size)) for size in range(_LONGEST + 1)], dtype=np.uint32)
# What a byte adds that so many others follow: [how many, byte].
_ADDED = np.array(
    [[zlib.crc32(bytes([b, *bytes(after)])) for b in range(256)] for after in range(_LONGEST)],
    dtype=np.uint32,
)
_ADDED ^= _ADDED[:, :1]
# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[^\W\d_{_UNSPACED}]+|\d+|[^\w\s]|[{_UNSPACED}]")
_KNOWN_UNSPACED = frozenset(re.findall(f"[{_UNSPACED}]", "".join(map(chr, range(_NUM_KNOWN)))))


@dataclass(frozen=True, slots=True)
class Tokens:
    """N tokens by code, how many characters each has, and which are words."""

    codes_N: Codes
    sizes_N: Places
    is_word_N: Flags


def read_tokens(lowered: str) -> Tokens:
    """Read a text in lower case; all numbers of as many digits are one token.

    Their values rarely come again.
    """
    points_C = np.frombuffer(f" {lowered}".encode("utf-32-le", "replace"), dtype="<u4")
    kinds_C = _KINDS.take(points_C, mode="clip")
    if kinds_C.max() == _ODD:
        return read_one_by_one(lowered)
    is_new_C = kinds_C[1:] != kinds_C[:-1]
    is_new_C |= kinds_C[1:] == _SIGN
    kept_K = (kinds_C >= _LETTER).nonzero()[0]
    starts_N = is_new_C.take(kept_K - 1).nonzero()[0]
    kinds_K, points_K = kinds_C.take(kept_K), points_C.take(kept_K)
    np.putmask(points_K, kinds_K == _DIGIT, ord("0"))
    data_B = _encode(points_K, lowered)
    codes_N = _code(data_B, _in_bytes(data_B, starts_N, len(points_K)))
    if codes_N is None:
        return read_one_by_one(lowered)
    return Tokens(
        codes_N,
        _ends(starts_N, len(points_K)) - starts_N,
        kinds_K.take(starts_N) == _LETTER,
    )


def read_one_by_one(lowered: str) -> Tokens:
    """Do the same for any text, however unusual its characters or long its words, only slower."""
    tokens = _TOKEN.findall(lowered)
    plain = ("0" * len(token) if token.isdigit() else token for token in tokens)
    codes = [zlib.crc32(token.encode("utf-8", "replace")) for token in plain]
    return Tokens(
        np.array(codes, dtype=np.uint32),
        np.array([*map(len, tokens)], dtype=np.intp),
        np.array([*map(str.isalpha, tokens)], dtype=bool),
    )


def count_same(values: NDArray[Any]) -> tuple[NDArray[Any], Places]:
    """Return the different values in order, and how often each occurs."""
    ordered = np.sort(values)
    is_first = np.ones(len(ordered) + 1, dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:-1])
    starts = is_first.nonzero()[0]
    return ordered.take(starts[:-1]), starts[1:] - starts[:-1]


def _code(data_B: Bytes, starts_N: Places) -> Codes | None:
    """Return the codes of tokens that begin at some bytes, or None if one is too long."""
    ends_N = _ends(starts_N, len(data_B))
    sizes_N = ends_N - starts_N
    if sizes_N.max(initial=0) > _LONGEST:
        return None
    places_B = ends_N.repeat(sizes_N)
    places_B -= np.arange(1, len(data_B) + 1)
    places_B <<= 8
    places_B += data_B
    codes_N: Codes = np.bitwise_xor.reduceat(_ADDED.take(places_B), starts_N)
    codes_N ^= _EMPTY.take(sizes_N)
    return codes_N


def _ends(starts_N: Places, size: int) -> Places:
    ends_N = np.full(len(starts_N), size)
    ends_N[:-1] = starts_N[1:]
    return ends_N


def _in_bytes(data_B: Bytes, starts_N: Places, num_chars: int) -> Places:
    """Turn places of characters into places of their first bytes."""
    if len(data_B) == num_chars:
        return starts_N
    begins = ((data_B & 0xC0) != 0x80).nonzero()[0]
    places_N: Places = begins.take(starts_N)
    return places_N


def _encode(points: NDArray[np.uint32], lowered: str) -> Bytes:
    if lowered.isascii():
        return points.astype(np.uint8)
    return np.frombuffer(points.tobytes().decode("utf-32-le").encode(), dtype=np.uint8)


def _kind_of(character: str) -> int:
    if character.isspace():
        return _SPACE
    if character == "_":
        return _LINE
    if character.isalpha():
        return _ODD if character in _KNOWN_UNSPACED else _LETTER
    if character.isdecimal():
        return _DIGIT
    return _ODD if character.isalnum() else _SIGN


# All that lie beyond are odd.
_KINDS = np.array([*(_kind_of(chr(point)) for point in range(_NUM_KNOWN)), _ODD], dtype=np.uint8)
