"""A prompt's shape: how long it is, how it asks, what it offers, which kinds of words it uses.

Measures of form rather than topic, so that they mean the same for subjects never seen before.
Standard library and numpy, well below a millisecond. Knows text, not models. Next: features.py.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from moestro.policy.tokens import Codes, Places, Tokens, count_same

Floats = NDArray[np.float32]

SIZES = (
    "log_chars",
    "log_words",
    "log_lines",
    "word_length",
    "sentence_words",
    "upper_share",
    "digit_share",
    "symbol_share",
    "foreign_share",
    "distinct_share",
    "log_single_letters",
    "log_acronyms",
    "log_titles",
    "long_share",
)
QUANTITIES = (
    "log_numbers",
    "log_largest",
    "decimals",
    "percents",
    "money",
    "units",
    "formulas",
    "code",
)
ASKING = (
    "log_question",
    "log_question_words",
    "last_sentence_share",
    "ends_in_question_mark",
    "questions",
    "commas",
    "blanks",
)
OPTIONS = (
    "options",
    "option_chars",
    "longest_option",
    "shortest_option",
    "short_options",
    "numeric_options",
    "option_word_length",
    "option_function_share",
    "option_echo",
    "mean_likeness",
    "most_likeness",
)
# Kinds of words that are counted; a word is of one kind.
KINDS = {
    "negations": "not except never least false incorrect without",
    "statements": "statement statements scenario premise argument passage",
    "steps": "then after before each every left total remaining another first next half",
    "comparisons": "more less fewer than twice times double triple older younger as",
    "rates": "per hour hours minute minutes day days week weeks month months year years percent "
    "mile miles speed",
    "choosing": "which following",
    "superlatives": "best most likely primary main",
    "tasks": "calculate compute find evaluate solve determine many much value equal equals sum "
    "product average probability",
    "directions": "increase increases increased decrease decreases decreased higher lower greater "
    "rise rises fall falls",
    "logic": "if all some no only any unless implies",
    "norms": "should ought must moral morally wrong right",
    "views": "according argue argues theory theories claim claims believe believes view author",
    "people": "he she his her him man woman boy girl patient",
    "readers": "i my me you your",
}
SHAPE = (*SIZES, *QUANTITIES, *ASKING, *OPTIONS, *KINDS)

_FUNCTION = (
    "the of a an and to in is that for on with as by are from at it be this was or which not have "
    "has his her he she they their its you your we our i who what will would can may if were had "
    "than then there these those do does did but so such into about between when where how"
)
_KIND_OF = {
    zlib.crc32(word.encode()): place
    for place, words in enumerate(KINDS.values())
    for word in words.split()
}
_KIND_CODES = np.array(sorted(_KIND_OF), dtype=np.uint32)
_PLACE_OF_KIND = np.array([_KIND_OF[code] for code in sorted(_KIND_OF)])
_WORD = re.compile(r"[^\W\d_]+")
_ASCII_WORD = re.compile(r"[a-z]+")
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
_DIGIT = re.compile(r"\d")
_UNIT = r"\s?(?:[kcm]?[gmLJNVW]|k?(?:Pa|Hz|cal)|s|ms|mol|A|C|K|atm|ohm|eV)\b"
# What begins with one character, or with a break of lines, is found several times quicker.
_NUMBER = re.compile(rf"(\d\d*(?:[.,]\d+)*)({_UNIT})?")
_OPTION = re.compile(r"\n[ \t]*\(?([A-J])[.):][ \t]*(.*)")
_DIGITS, _FORMULA_SIGNS, _CODE_SIGNS = b"0123456789", b"=^\\<>+*/|~", b"{};"
_CODE_WORDS = ("def ", "return", "()", "import ", "print")
_CAPITALS, _SMALL = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz"
# "A", "a" or a space: letters of other alphabets count as spaces.
_CASES = bytes(
    ord("A" if code in _CAPITALS else "a" if code in _SMALL else " ") for code in range(256)
)
_LONG_WORD = 9
_SHORT_OPTION = 12
_MOST_OPTIONS = 10


def read_shape(text: str, tokens: Tokens, num_chars: int) -> Floats:
    """Return a text's measures in the order of SHAPE.

    `tokens` are those of the text in lower case, `num_chars` its length before it was cut.
    """
    question, options = _split(text)
    sizes_W = tokens.sizes_N[tokens.is_word_N]
    words = count_same(tokens.codes_N[tokens.is_word_N])
    data = text.encode("utf-8", "replace")
    values = (
        *_sizes(text, data, sizes_W, len(words[0]), num_chars),
        *_quantities(text, data),
        *_asking(text, question),
        *_options(options, *words),
        *_kinds(*words),
    )
    return np.array(values, dtype=np.float32)


def _split(text: str) -> tuple[str, list[str]]:
    """Return what is asked, and what the last question of a text offers to choose from."""
    found = list(_OPTION.finditer(f"\n{text}"))
    if not found:
        return text, []
    first = max((place for place, option in enumerate(found) if option[1] == "A"), default=0)
    return text[: found[first].start()], [option[2] for option in found[first:]][:_MOST_OPTIONS]


def _sizes(
    text: str, data: bytes, sizes_W: Places, num_distinct: int, num_chars: int
) -> tuple[float, ...]:
    size, num_words = max(1, len(text)), max(1, len(sizes_W))
    letters, digits = int(sizes_W.sum()), _count_of(_DIGITS, data)
    cases = b" " + data.translate(_CASES)
    sentences = 1 + text.count(". ") + text.count("? ")
    return (
        math.log1p(num_chars),
        math.log1p(len(sizes_W)),
        math.log1p(text.count("\n")),
        letters / num_words,
        len(sizes_W) / sentences,
        cases.count(b"A") / size,
        digits / size,
        1.0 - (letters + digits + text.count(" ")) / size,
        (len(data) - len(text)) / size,
        num_distinct / num_words,
        math.log1p(np.count_nonzero(sizes_W == 1)),
        math.log1p(cases.count(b" AA")),
        math.log1p(cases.count(b" Aa")),
        np.count_nonzero(sizes_W >= _LONG_WORD) / num_words,
    )


def _quantities(text: str, data: bytes) -> tuple[float, ...]:
    found = _NUMBER.findall(text)
    return (
        math.log1p(len(found)),
        math.log1p(max((_value(number) for number, _ in found), default=0.0)),
        math.log1p(sum("." in number for number, _ in found)),
        math.log1p(text.count("%") + text.count("percent")),
        math.log1p(text.count("$")),
        math.log1p(sum(bool(unit) for _, unit in found)),
        math.log1p(_count_of(_FORMULA_SIGNS, data) + text.count("->")),
        math.log1p(_count_of(_CODE_SIGNS, data) + sum(map(text.count, _CODE_WORDS))),
    )


def _count_of(signs: bytes, data: bytes) -> int:
    return len(data) - len(data.translate(None, signs))


def _value(number: str) -> float:
    # Thousands have commas; what is too long to be a quantity counts as the largest.
    return float(number.replace(",", "").partition(".")[0][:12] or 0)


def _asking(text: str, question: str) -> tuple[float, ...]:
    asked = question.rstrip()
    last = max(asked.rfind(". "), asked.rfind("? "), asked.rfind("\n")) + 1
    return (
        math.log1p(len(question)),
        math.log1p(question.count(" ")),
        (len(asked) - last) / max(1, len(asked)),
        asked.endswith("?"),
        float(min(text.count("?"), 5)),
        math.log1p(text.count(",")),
        math.log1p(text.count("__")),
    )


def _options(options: Sequence[str], words_U: Codes, counts_U: Places) -> tuple[float, ...]:
    if not options:
        return (0.0,) * len(OPTIONS)
    sizes = [*map(len, options)]
    sets = [_words_of(option.lower()) for option in options]
    likeness = [_likeness(a, b) for a, b in combinations(sets, 2)]
    offered = [word for option in sets for word in option]
    num_words, distinct = max(1, len(offered)), Counter(offered)
    return (
        float(len(options)),
        math.log1p(sum(sizes) / len(sizes)),
        math.log1p(max(sizes)),
        math.log1p(min(sizes)),
        math.log1p(sum(size <= _SHORT_OPTION for size in sizes)),
        sum(map(bool, map(_DIGIT.search, options))) / len(options),
        len("".join(offered)) / num_words,
        sum(map(_FUNCTION_WORDS.__contains__, offered)) / num_words,
        # What occurs more often than in options is in the question, too.
        _num_echoed(distinct, words_U, counts_U) / max(1, len(distinct)),
        sum(likeness) / max(1, len(likeness)),
        max(likeness, default=0.0),
    )


def _words_of(lowered: str) -> set[str]:
    return set((_ASCII_WORD if lowered.isascii() else _WORD).findall(lowered))


def _likeness(left: set[str], right: set[str]) -> float:
    num_shared = len(left & right)
    return num_shared / max(1, len(left) + len(right) - num_shared)


def _num_echoed(found: Counter[str], words_U: Codes, counts_U: Places) -> int:
    """Return how many words occur more often in the text than was found."""
    codes = np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in found], np.uint32)
    return int(np.count_nonzero(_look_up(codes, words_U, counts_U) > [*found.values()]))


def _kinds(words_U: Codes, counts_U: Places) -> list[float]:
    totals = np.bincount(_PLACE_OF_KIND, _look_up(_KIND_CODES, words_U, counts_U), len(KINDS))
    return [*map(math.log1p, totals.tolist())]


def _look_up(codes: Codes, words_U: Codes, counts_U: Places) -> Places:
    """Return how often each word occurs."""
    if not len(words_U):
        return np.zeros(len(codes), dtype=np.intp)
    places = words_U.searchsorted(codes)
    is_there = words_U.take(places, mode="clip") == codes
    counts: Places = counts_U.take(places, mode="clip") * is_there
    return counts
