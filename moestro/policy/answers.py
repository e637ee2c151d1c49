"""An answer as numbers: its length and end, its own arithmetic, and how it uses the prompt.

Shape, not sense: whether an answer comes to an end, whether its sums are right, whether it took up
the prompt's numbers. Standard library and numpy, well below a millisecond. Next: verify.py.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moestro.policy.features import HEAD_CHARS, TAIL_CHARS

Floats = NDArray[np.float64]

SIGNS = (
    "log_chars",
    "log_words",
    "log_lines",
    "length_ratio",
    "ends_in_line",
    "ends_in_digit",
    "ends_in_point",
    "ends_in_letter",
    "has_final",
    "has_number",
    "right_sums",
    "wrong_sums",
    "no_sums",
    "wrong_share",
    "final_is_last_sum",
    "final_is_a_sum",
    "final_is_given",
    "final_is_fraction",
    "log_final",
    "used_share",
    "log_unused",
    "log_numbers",
    "foreign_share",
    "log_fractions",
    "log_unknowns",
    "log_percents",
    "log_slashes",
    "log_upper",
    "log_hedges",
    "distinct_share",
    "echo_share",
)

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"[^\W\d_]+")
# GSM8K's own mark, TeX's, and plain words.
_FINAL = re.compile(r"(?:####|\\boxed\{|answer(?: is)?:?)\s*[$(*]*(-?\d[\d,]*(?:\.\d+)?)", re.I)
# An operand may stand in parentheses and have a unit of one sign; so "$40 * (1.2) = $48".
_OPERAND = r"\$?\(?-?\d[\d,]*(?:\.\d+)?\)?%?"
_SUM = re.compile(
    rf"((?:{_OPERAND}\s{{0,3}}[-+*/x\u00d7\u00f7]\s{{0,3}}){{1,8}}{_OPERAND})"
    r"[A-Za-z ]{0,20}=\s{0,3}\$?(-?\d[\d,]*(?:\.\d+)?)"
)
# A calculator's note, "<<2*3=6>>", repeats the sum that it stands in, or is the only one.
_NOTE = re.compile(r"<<([^=<>]{1,60})=([^<>]{1,20})>>")
_TERM = re.compile(r"([-+*/])?\s*(-?\d+(?:\.\d+)?)(%)?\s*")
_UNKNOWN = re.compile(r"\b[a-z]\s*[=+\-]")
_HEDGE = re.compile(
    r"\b(?:however|assum\w*|can't|cannot|approximately|about|not|but|would|if|since|let's|first"
    r"|so|therefore|because|means?|round\w*|actually|impossible|unclear|sorry|unable|maybe|perhaps"
    r"|depends)\b",
    re.IGNORECASE,
)


def read_answer(prompt: str, answer: str) -> Floats:
    """Return the signs of an answer to a prompt, in the order of SIGNS."""
    text = _cut(answer)
    given = set(_numbers(_cut(prompt)))
    sums = [*_check(_NOTE, text), *_check(_SUM, _NOTE.sub("", text))]
    results = [value for value, _ in sums]
    numbers = _numbers(_NOTE.sub("", text))
    found = _FINAL.findall(text)
    final = _value(found[-1]) if found else (numbers[-1] if numbers else None)
    words = [word.lower() for word in _WORD.findall(text)]
    asked = {word.lower() for word in _WORD.findall(_cut(prompt))}
    num_right = sum(is_right for _, is_right in sums)
    num_wrong = len(sums) - num_right
    # Small numbers count things and steps; larger ones came from somewhere.
    foreign = [n for n in numbers if n > 2 and n not in given and n not in results]
    last = text.rstrip()[-1:]
    values = (
        math.log1p(len(answer)),
        math.log1p(len(words)),
        math.log1p(text.count("\n")),
        math.log((1 + len(answer)) / (1 + len(prompt))),
        text.endswith("\n"),
        last.isdigit(),
        last == ".",
        last.isalpha(),
        bool(found),
        final is not None,
        math.log1p(num_right),
        math.log1p(num_wrong),
        not sums,
        num_wrong / max(1, len(sums)),
        final is not None and (not results or final == results[-1]),
        final in results,
        final in given,
        final is not None and final != int(final),
        0.0 if final is None else math.log1p(abs(final)),
        len(given.intersection(numbers)) / max(1, len(given)),
        math.log1p(len(given.difference(numbers))),
        math.log1p(len(numbers)),
        len(foreign) / max(1, len(numbers)),
        math.log1p(sum(n != int(n) for n in numbers)),
        math.log1p(len(_UNKNOWN.findall(text))),
        math.log1p(text.count("%")),
        math.log1p(text.count("/")),
        math.log1p(sum(map(str.isupper, text))),
        math.log1p(len(_HEDGE.findall(text))),
        len(set(words)) / max(1, len(words)),
        len(asked.intersection(words)) / max(1, len(asked)),
    )
    return np.array(values, dtype=np.float64)


def _cut(text: str) -> str:
    # How it begins and how it ends says most, and reading all of a long one takes too long.
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


def _check(pattern: re.Pattern[str], text: str) -> Sequence[tuple[float, bool]]:
    """Return the result that each sum of a text states, and whether it is right."""
    checked = []
    for terms, stated in pattern.findall(text):
        true, said = _work_out(terms), _value(stated)
        if true is not None and said is not None:
            # Rounded to a cent, or to two percent, is right.
            checked.append((said, abs(true - said) <= max(0.06, 0.02 * abs(true))))
    return checked


def _work_out(terms: str) -> float | None:
    """Work out a chain of numbers and signs; None where it is more than that."""
    text = terms.replace(",", "").replace("$", "")
    text = text.replace("x", "*").replace("\u00d7", "*").replace("\u00f7", "/")
    # Around one number parentheses change nothing; others are beyond this.
    text = re.sub(r"\((-?\d+(?:\.\d+)?)\)", r"\1", text).strip()
    total, product, place = 0.0, 0.0, 0
    while place < len(text):
        found = _TERM.match(text, place)
        if found is None or (found[1] is None) != (place == 0):
            return None
        number = float(found[2]) / (100.0 if found[3] else 1.0)
        if found[1] == "*":
            product *= number
        elif found[1] == "/":
            if number == 0.0:
                return None
            product /= number
        else:
            total, product = total + product, -number if found[1] == "-" else number
        place = found.end()
    return total + product if math.isfinite(total + product) else None


def _numbers(text: str) -> list[float]:
    values = (_value(number) for number in _NUMBER.findall(text))
    return [value for value in values if value is not None]


def _value(number: str) -> float | None:
    """Return a number as written; None for what is none, or too long to be a quantity."""
    digits = number.replace(",", "").replace("$", "").strip()
    try:
        return float(digits) if len(digits) <= 15 else None
    except ValueError:
        return None
