"""A prompt as numbers: hashed words and pairs of words, and the measures of its shape.

Needs numpy only and less than a millisecond, since it runs before every answer. Knows text, not
models. Next: estimate.py.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moestro.policy.shape import read_shape
from moestro.policy.tokens import Codes, count_same, read_tokens

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Shorts = NDArray[np.uint16]

# As many as there are short numbers, which sort several times quicker than others.
NUM_BUCKETS = 1 << 16
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
    buckets, counts = count_same(_buckets(tokens.codes_N))
    return Features(
        buckets.astype(np.int64), _WEIGHTS.take(counts), read_shape(text, tokens, len(prompt))
    )


def _buckets(codes_N: Codes) -> Shorts:
    codes = codes_N.astype(np.uint64)
    pairs = codes[:-1] * np.uint64(2654435761)
    pairs += codes[1:] * np.uint64(40503)
    mixed = np.concatenate([codes, pairs])
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed >>= np.uint64(40)
    return mixed.astype(np.uint16)
