"""What others make of the same held-out bytes: gzip, xz, and an n-gram model of the training text.

All in bits per byte. The n-gram model is interpolated Kneser-Ney: each order keeps what its counts
say, less a discount, and gives the discount to the next shorter context. Legend: Q queries, G
grams, C contexts. Next: loader.py.
"""

import gzip
import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moestro.data.corpus import Document
from moestro.errors import ConfigError

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
_BYTE = np.uint64(8)


def measure(
    training: Sequence[Document], held_out: Sequence[Document], max_training_bytes: int = 20_000_000
) -> dict[str, float]:
    """Return bits per byte of the held-out text by `gzip`, `xz` and `ngram`."""
    texts = [document.text.encode() for document in held_out]
    joined = b"".join(texts)
    known = b"".join(_take(training, max_training_bytes))
    return {
        "gzip": gzip_bits_per_byte(joined),
        "xz": xz_bits_per_byte(joined),
        "ngram": ngram_bits_per_byte(known, texts),
    }


def gzip_bits_per_byte(data: bytes) -> float:
    """Compress with `gzip -9`."""
    return 8 * len(gzip.compress(data, compresslevel=9, mtime=0)) / len(data)


def xz_bits_per_byte(data: bytes) -> float:
    """Compress with `xz -9e`."""
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)


def ngram_bits_per_byte(train: bytes, held_out: list[bytes], order: int = 5) -> float:
    """Predict each byte of `held_out` from the `order` bytes before it in its own text."""
    num_bytes = sum(map(len, held_out))
    model = NgramModel.fit(train, order)
    start = b"\0" * order
    nats = 0.0
    for text in held_out:
        grams_Q = pack(start + text, order)
        nats -= float(np.log(model.probabilities(grams_Q)).sum())
    return nats / math.log(2) / num_bytes


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One order: sorted grams with what each keeps, contexts with what each gives away."""

    grams_G: Words
    kept_G: Floats
    contexts_C: Words
    given_C: Floats


@dataclass(frozen=True, kw_only=True)
class NgramModel:
    """Levels from no context to `order` bytes of it. A gram is one number, its last byte lowest."""

    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, train: bytes, order: int) -> "NgramModel":
        """Count every gram of `train`; lower orders count in how many contexts a gram stands."""
        if not 0 <= order <= 7:
            raise ConfigError(f"order is {order}: a gram of 1 to 8 bytes has an order of 0 to 7")
        grams_G, counts_G = np.unique(pack(b"\0" * order + train, order), return_counts=True)
        levels = [_build_level(grams_G, counts_G)]
        for length in range(order - 1, -1, -1):
            shorter_G = grams_G & np.uint64(256 ** (length + 1) - 1)
            grams_G, counts_G = np.unique(shorter_G, return_counts=True)
            levels.append(_build_level(grams_G, counts_G))
        return cls(levels=tuple(reversed(levels)))

    def probabilities(self, grams_Q: Words) -> Floats:
        """Return the probability of each packed gram's last byte after the bytes before it."""
        # Sorted queries walk through the tables once instead of jumping.
        places_Q = np.argsort(grams_Q)
        sorted_Q = grams_Q[places_Q]
        chances_Q = np.full(len(grams_Q), 1 / 256)
        for length, level in enumerate(self.levels):
            known_Q = sorted_Q & np.uint64(256 ** (length + 1) - 1)
            kept_Q = _look_up(level.grams_G, level.kept_G, known_Q, 0.0)
            given_Q = _look_up(level.contexts_C, level.given_C, known_Q >> _BYTE, 1.0)
            chances_Q = kept_Q + given_Q * chances_Q
        answer_Q = np.empty_like(chances_Q)
        answer_Q[places_Q] = chances_Q
        return answer_Q


def pack(data: bytes, order: int) -> Words:
    """Pack each byte after the first `order`, with the `order` bytes before it, into one number."""
    bytes_T = np.frombuffer(data, dtype=np.uint8)
    num_grams = max(len(bytes_T) - order, 0)
    grams_G = np.zeros(num_grams, dtype=np.uint64)
    for place in range(order + 1):
        grams_G <<= _BYTE
        grams_G |= bytes_T[place : place + num_grams]
    return grams_G


def _build_level(grams_G: Words, counts_G: NDArray[np.intp]) -> _Level:
    # The classical estimate of the discount from how many grams were seen once and twice.
    once, twice = int((counts_G == 1).sum()), int((counts_G == 2).sum())
    discount = min(max(once / (once + 2 * twice), 0.1), 0.95) if once else 0.5
    contexts_G = grams_G >> _BYTE
    is_first_G = np.ones(len(grams_G), dtype=bool)
    is_first_G[1:] = contexts_G[1:] != contexts_G[:-1]
    firsts_C = np.flatnonzero(is_first_G)
    kinds_C = np.diff(np.append(firsts_C, len(grams_G)))
    totals_C = np.add.reduceat(counts_G, firsts_C) if len(firsts_C) else np.empty(0)
    return _Level(
        grams_G=grams_G,
        kept_G=(counts_G - discount) / np.repeat(totals_C, kinds_C),
        contexts_C=contexts_G[firsts_C],
        given_C=discount * kinds_C / totals_C,
    )


def _look_up(keys: Words, values: Floats, wanted_Q: Words, default: float) -> Floats:
    if not len(keys):
        return np.full(len(wanted_Q), default)
    places_Q = np.minimum(np.searchsorted(keys, wanted_Q), len(keys) - 1)
    return np.where(keys[places_Q] == wanted_Q, values[places_Q], default)


def _take(documents: Sequence[Document], num_bytes: int) -> Iterator[bytes]:
    # Document borders as in the held-out text: five bytes that no text has.
    for document in sorted(documents, key=lambda document: document.draw("ngram", 0)):
        data = document.text.encode()[:num_bytes]
        if not data:
            return
        num_bytes -= len(data)
        yield data + b"\0" * 5
