"""A prompt as numbers: hashed words and letters, and a few measures of its shape.

Needs numpy only and less than a millisecond, since it runs before every answer. Knows text, not
models. Next: estimate.py.
"""

import hashlib
import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Words and word pairs have the lower part of the buckets, runs of letters the upper part.
WORD_BUCKETS = 1 << 16
LETTER_BUCKETS = 1 << 16
NUM_BUCKETS = WORD_BUCKETS + LETTER_BUCKETS
LETTER_RUN = 5
# What a long prompt asks stands at its beginning or its end, and reading all of it takes too long.
HEAD_CHARS, TAIL_CHARS = 2_000, 1_000

SHAPE = (
    "log_chars",
    "log_words",
    "log_lines",
    "word_length",
    "sentence_words",
    "upper_share",
    "digit_share",
    "symbol_share",
    "foreign_share",
    "log_numbers",
    "log_largest",
    "decimals",
    "percents",
    "money",
    "options",
    "option_chars",
    "numeric_options",
    "questions",
    "negations",
    "blanks",
    "formulas",
    "code",
    "statements",
    "steps",
    "comparisons",
    "rates",
    "distinct_share",
    "log_question",
)

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPTION = re.compile(r"^[ \t]*\(?[A-J][.):][ \t]*(.*)$", re.MULTILINE)
_NEGATION = re.compile(r"\b(?:not|except|never|least|false|incorrect|without)\b", re.IGNORECASE)
_STATEMENT = re.compile(r"\b(?:statement|scenario|premise|argument|passage)\b", re.IGNORECASE)
_STEP = re.compile(
    r"\b(?:then|after|before|each|every|left|total|remaining|another|first|next|half)\b",
    re.IGNORECASE,
)
_COMPARISON = re.compile(
    r"\b(?:more|less|fewer|than|twice|times|double|triple|older|younger|as)\b", re.IGNORECASE
)
_RATE = re.compile(
    r"\b(?:per|hours?|minutes?|days?|weeks?|months?|years?|percent|miles|speed)\b", re.IGNORECASE
)
_FORMULA = re.compile(r"[=^\\<>+*/|~]|->")
_CODE = re.compile(r"def |return|[{};]|\(\)|import |print")


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
    words = _count(_word_buckets(text))
    letters = _count(_letter_buckets(text))
    buckets = np.concatenate([words[0], letters[0] + WORD_BUCKETS])
    return Features(buckets, np.concatenate([words[1], letters[1]]), _shape(text, len(prompt)))


def _word_buckets(text: str) -> Ints:
    # All numbers of as many digits are one word: their values rarely come again.
    tokens = ["0" * len(t) if t.isdigit() else t for t in _TOKEN.findall(text.lower())]
    codes = np.array([zlib.crc32(t.encode("utf-8", "replace")) for t in tokens], dtype=np.uint64)
    pairs = codes[:-1] * np.uint64(2654435761) + codes[1:] * np.uint64(40503)
    return _fold(np.concatenate([codes, pairs]), WORD_BUCKETS)


def _letter_buckets(text: str) -> Ints:
    plain = " ".join(text.lower().split())
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
    return ((mixed >> np.uint64(40)) % np.uint64(num_buckets)).astype(np.int64)


def _count(buckets: Ints) -> tuple[Ints, Floats]:
    found, counts = np.unique(buckets, return_counts=True)
    return found, (1.0 + np.log(counts)).astype(np.float32)


def _shape(text: str, num_chars: int) -> Floats:
    words = _WORD.findall(text)
    options = _OPTION.findall(text)
    numbers = _NUMBER.findall(text)
    size, num_words = max(1, len(text)), max(1, len(words))
    letters = sum(map(len, words))
    digits = sum(map(len, numbers))
    sentences = 1 + text.count(". ") + text.count("? ")
    question = max(text.rfind("\nA."), 0) or len(text)
    numeric = sum(1 for option in options if _NUMBER.search(option))
    values = (
        math.log1p(num_chars),
        math.log1p(len(words)),
        math.log1p(text.count("\n")),
        letters / num_words,
        len(words) / sentences,
        sum(map(str.isupper, text)) / size,
        digits / size,
        1.0 - (letters + digits + text.count(" ")) / size,
        (len(text.encode("utf-8", "replace")) - len(text)) / size,
        math.log1p(len(numbers)),
        math.log1p(max((_value(n) for n in numbers), default=0.0)),
        math.log1p(sum(1 for n in numbers if "." in n)),
        math.log1p(text.count("%") + text.count("percent")),
        math.log1p(text.count("$")),
        float(min(len(options), 10)),
        math.log1p(sum(map(len, options)) / max(1, len(options))),
        numeric / max(1, len(options)),
        float(min(text.count("?"), 5)),
        math.log1p(len(_NEGATION.findall(text))),
        math.log1p(text.count("__")),
        math.log1p(len(_FORMULA.findall(text))),
        math.log1p(len(_CODE.findall(text))),
        math.log1p(len(_STATEMENT.findall(text))),
        math.log1p(len(_STEP.findall(text))),
        math.log1p(len(_COMPARISON.findall(text))),
        math.log1p(len(_RATE.findall(text))),
        len({w.lower() for w in words}) / num_words,
        math.log1p(question),
    )
    return np.array(values, dtype=np.float32)


def _value(number: str) -> float:
    # Thousands have commas; what is too long to be a quantity counts as the largest.
    return float(number.replace(",", "").partition(".")[0][:12] or 0)
