"""A prompt as numbers: hashed words and letters, and the measures of its shape.

Needs numpy only and less than a millisecond, since it runs before every answer. Knows text, not
models. Next: estimate.py.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moestro.policy.shape import read_shape
from moestro.policy.tokens import Bytes, Codes, count_same, read_tokens

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Shorts = NDArray[np.uint16]

# Words and word pairs have the lower part of the buckets, runs of letters the upper part.
WORD_BUCKETS = 1 << 16
LETTER_BUCKETS = 1 << 16
NUM_BUCKETS = WORD_BUCKETS + LETTER_BUCKETS
LETTER_RUN = 5
# What a long prompt asks stands at its beginning or its end, and reading all of it takes too long.
HEAD_CHARS, TAIL_CHARS = 2_000, 1_000

# A text as short as is read holds nothing more often.
_MOST_OFTEN = 1 << 14
_WEIGHTS = (1.0 + np.log(np.maximum(np.arange(_MOST_OFTEN), 1))).astype(np.float32)


@dataclass(frozen=True)
class Features:
    """One prompt: which buckets hold how much, and its shape."""

    buckets: Ints
    weights: Floats
    shape: Floats

    @property
    def digest(self) -> str:
        """Name these features in 16 hexadecimal digits, which do not give the prompt away."""
        # Which half a bucket is of is told by the order.
        parts = (
            self.buckets.astype(np.uint16).tobytes() + self.weights.tobytes() + self.shape.tobytes()
        )
        return hashlib.blake2b(parts, digest_size=8).hexdigest()


def read(prompt: str) -> Features:
    """Turn a prompt into features."""
    text = prompt
    if len(text) > HEAD_CHARS + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"
    tokens = read_tokens(text.lower())
    words, word_weights = _weigh(_word_buckets(tokens.codes_N))
    letters, letter_weights = _weigh(_letter_buckets(tokens.data))
    return Features(
        np.concatenate([words, letters + WORD_BUCKETS]),
        np.concatenate([word_weights, letter_weights]),
        read_shape(text, tokens, len(prompt)),
    )


def _word_buckets(codes_N: Codes) -> Shorts:
    codes = codes_N.astype(np.uint64)
    pairs = codes[:-1] * np.uint64(2654435761)
    pairs += codes[1:] * np.uint64(40503)
    return _fold(np.concatenate([codes, pairs]))


def _letter_buckets(data_B: Bytes) -> Shorts:
    data = data_B.astype(np.uint64)
    num_runs = len(data) - LETTER_RUN + 1
    if num_runs <= 0:
        return np.zeros(0, dtype=np.uint16)
    codes = data[:num_runs]
    for place in range(1, LETTER_RUN):
        codes = codes * np.uint64(257)
        codes += data[place : place + num_runs]
    return _fold(codes)


def _fold(codes: NDArray[np.uint64]) -> Shorts:
    # Of as many buckets as there are short numbers, which sort several times quicker than others.
    mixed = codes * np.uint64(0x9E3779B97F4A7C15)
    mixed >>= np.uint64(40)
    return mixed.astype(np.uint16)


def _weigh(buckets: Shorts) -> tuple[Ints, Floats]:
    found, counts = count_same(buckets)
    return found.astype(np.int64), _WEIGHTS.take(counts)
