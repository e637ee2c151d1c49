"""A prompt's shape: how long it is, how it asks, what it offers, which kinds of words it uses.

Measures of form rather than topic, so that they mean the same for subjects never seen before.
Standard library and numpy, well below a millisecond. Knows text, not models. Next: features.py.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

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
_KIND_OF = {word: place for place, words in enumerate(KINDS.values()) for word in words.split()}
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPTION = re.compile(r"^[ \t]*\(?([A-J])[.):][ \t]*(.*)$", re.MULTILINE)
_UNIT = re.compile(r"\d\s?(?:[kcm]?[gmLJNVW]|k?(?:Pa|Hz|cal)|s|ms|mol|A|C|K|atm|ohm|eV)\b")
_FORMULA_SIGNS = (*"=^\\<>+*/|~", "->")
_CODE_SIGNS = ("def ", "return", "{", "}", ";", "()", "import ", "print")
_LONG_WORD = 9
_SHORT_OPTION = 12
_MOST_OPTIONS = 10


def read_shape(text: str, words: Sequence[str], num_chars: int) -> Floats:
    """Return a text's measures in the order of SHAPE.

    `words` are all its words in lower case, `num_chars` its length before it was cut.
    """
    question, options = _split(text)
    counts = Counter(words)
    values = (
        *_sizes(text, words, len(counts), num_chars),
        *_quantities(text),
        *_asking(text, question),
        *_options(options, counts),
        *_kinds(counts),
    )
    return np.array(values, dtype=np.float32)


def _split(text: str) -> tuple[str, list[str]]:
    """Return what is asked, and what the last question of a text offers to choose from."""
    found = list(_OPTION.finditer(text))
    if not found:
        return text, []
    first = max((place for place, option in enumerate(found) if option[1] == "A"), default=0)
    return text[: found[first].start()], [option[2] for option in found[first:]][:_MOST_OPTIONS]


def _sizes(text: str, words: Sequence[str], num_distinct: int, num_chars: int) -> tuple[float, ...]:
    size, num_words = max(1, len(text)), max(1, len(words))
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    data = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
    # Letters of other alphabets count in none of these: bytes are quicker than letters.
    is_upper = (data - ord("A")) < 26
    is_lower = (data - ord("a")) < 26
    begins = is_upper.copy()
    begins[1:] &= ~(is_upper | is_lower)[:-1]
    letters, digits = int(lengths.sum()), int(((data - ord("0")) < 10).sum())
    sentences = 1 + text.count(". ") + text.count("? ")
    return (
        math.log1p(num_chars),
        math.log1p(len(words)),
        math.log1p(text.count("\n")),
        letters / num_words,
        len(words) / sentences,
        int(is_upper.sum()) / size,
        digits / size,
        1.0 - (letters + digits + text.count(" ")) / size,
        (len(data) - len(text)) / size,
        num_distinct / num_words,
        math.log1p(int((lengths == 1).sum())),
        math.log1p(int((begins[:-1] & is_upper[1:]).sum())),
        math.log1p(int((begins[:-1] & is_lower[1:]).sum())),
        int((lengths >= _LONG_WORD).sum()) / num_words,
    )


def _quantities(text: str) -> tuple[float, ...]:
    numbers = _NUMBER.findall(text)
    return (
        math.log1p(len(numbers)),
        math.log1p(max(map(_value, numbers), default=0.0)),
        math.log1p(sum("." in number for number in numbers)),
        math.log1p(text.count("%") + text.count("percent")),
        math.log1p(text.count("$")),
        math.log1p(len(_UNIT.findall(text)) if numbers else 0),
        math.log1p(sum(map(text.count, _FORMULA_SIGNS))),
        math.log1p(sum(map(text.count, _CODE_SIGNS))),
    )


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


def _options(options: Sequence[str], counts: Counter[str]) -> tuple[float, ...]:
    if not options:
        return (0.0,) * len(OPTIONS)
    sizes = [*map(len, options)]
    sets = [set(_WORD.findall(option.lower())) for option in options]
    likeness = [len(a & b) / max(1, len(a | b)) for a, b in combinations(sets, 2)]
    offered = [word for option in sets for word in option]
    num_words, distinct = max(1, len(offered)), Counter(offered)
    return (
        float(len(options)),
        math.log1p(sum(sizes) / len(sizes)),
        math.log1p(max(sizes)),
        math.log1p(min(sizes)),
        math.log1p(sum(size <= _SHORT_OPTION for size in sizes)),
        sum(map(bool, map(_NUMBER.search, options))) / len(options),
        sum(map(len, offered)) / num_words,
        sum(word in _FUNCTION_WORDS for word in offered) / num_words,
        # What occurs more often than in options is in the question, too.
        sum(counts[word] > found for word, found in distinct.items()) / max(1, len(distinct)),
        sum(likeness) / max(1, len(likeness)),
        max(likeness, default=0.0),
    )


def _kinds(counts: Counter[str]) -> list[float]:
    totals = [0] * len(KINDS)
    for word in _KIND_OF.keys() & counts.keys():
        totals[_KIND_OF[word]] += counts[word]
    return [*map(math.log1p, totals)]
