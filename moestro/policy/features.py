"""A prompt as numbers: hashed words and letters, and the measures of its shape.

Needs numpy only and less than a millisecond, since it runs before every answer. Knows text, not
models. Next: estimate.py.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moestro.policy.shape import read_shape

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Words and word pairs have the lower part of the buckets, runs of letters the upper part.
WORD_BUCKETS = 1 << 16
LETTER_BUCKETS = 1 << 16
NUM_BUCKETS = WORD_BUCKETS + LETTER_BUCKETS
LETTER_RUN = 5
# What a long prompt asks stands at its beginning or its end, and reading all of it takes too long.
HEAD_CHARS, TAIL_CHARS = 2_000, 1_000

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


@dataclass(frozen=True)
class Features:
    """One prompt: which buckets hold how much, and its shape."""

    buckets: Ints
    weights: Floats
    shape: Floats

    @property
    def digest(self) -> str:
        """Name these features in 16 hexadecimal digits, which do not give the prompt away."""
        parts = self.buckets.tobytes() + self.weights.tobytes() + self.shape.tobytes()
        return hashlib.blake2b(parts, digest_size=8).hexdigest()


def read(prompt: str) -> Features:
    """Turn a prompt into features."""
    text = prompt
    if len(text) > HEAD_CHARS + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"
    lowered = text.lower()
    tokens = _TOKEN.findall(lowered)
    words = _count(_word_buckets(tokens))
    letters = _count(_letter_buckets(lowered))
    buckets = np.concatenate([words[0], letters[0] + WORD_BUCKETS])
    shape = read_shape(text, [*filter(str.isalpha, tokens)], len(prompt))
    return Features(buckets, np.concatenate([words[1], letters[1]]), shape)


def _word_buckets(tokens: Sequence[str]) -> Ints:
    known = {token: _code(token) for token in set(tokens)}
    codes = np.array([known[token] for token in tokens], dtype=np.uint64)
    pairs = codes[:-1] * np.uint64(2654435761) + codes[1:] * np.uint64(40503)
    return _fold(np.concatenate([codes, pairs]), WORD_BUCKETS)


def _code(token: str) -> int:
    # All numbers of as many digits are one word: their values rarely come again.
    plain = "0" * len(token) if token.isdigit() else token
    return zlib.crc32(plain.encode("utf-8", "replace"))


def _letter_buckets(lowered: str) -> Ints:
    plain = " ".join(lowered.split())
    data = np.frombuffer(f" {plain} ".encode("utf-8", "replace"), dtype=np.uint8).astype(np.uint64)
    num_runs = len(data) - LETTER_RUN + 1
    if num_runs <= 0:
        return np.zeros(0, dtype=np.int64)
    codes = np.zeros(num_runs, dtype=np.uint64)
    for place in range(LETTER_RUN):
        codes = codes * np.uint64(257) + data[place : place + num_runs]
    return _fold(codes, LETTER_BUCKETS)


def _fold(codes: NDArray[np.uint64], num_buckets: int) -> Ints:
    mixed = codes * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(40)) & np.uint64(num_buckets - 1)).astype(np.int64)


def _count(buckets: Ints) -> tuple[Ints, Floats]:
    # As short numbers they sort several times quicker.
    found, counts = np.unique(buckets.astype(np.uint16), return_counts=True)
    return found.astype(np.int64), (1.0 + np.log(counts)).astype(np.float32)
