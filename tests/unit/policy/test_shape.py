"""What is measured of a prompt's shape."""

import numpy as np
import pytest

from moestro.policy.shape import SHAPE, read_shape
from moestro.policy.tokens import read_tokens

CHOICE = (
    "He was born in 1990. Which of the following is NOT a planet?\n"
    "A. Mars\nB. Venus, the bright one\nC. 42\nD. The bright one\nAnswer:"
)


def measures(text: str) -> dict[str, float]:
    values = read_shape(text, read_tokens(text.lower()), len(text))
    assert np.isfinite(values).all()
    return dict(zip(SHAPE, map(float, values), strict=True))


def test_measures_have_names_of_their_own() -> None:
    assert len(set(SHAPE)) == len(SHAPE) == len(read_shape("", read_tokens(""), 0))


def test_what_is_offered_is_measured_apart_from_what_is_asked() -> None:
    found = measures(CHOICE)
    assert found["options"] == 4
    assert found["longest_option"] == pytest.approx(np.log1p(len("Venus, the bright one")))
    assert found["shortest_option"] == pytest.approx(np.log1p(len("42")))
    assert found["numeric_options"] == 0.25
    # "the bright one" is in two options of four and three words.
    assert found["most_likeness"] == pytest.approx(3 / 4)
    assert found["mean_likeness"] == pytest.approx(3 / 4 / 6)
    assert found["ends_in_question_mark"] == 1.0
    assert 0.5 < found["last_sentence_share"] < 1.0


def test_of_several_questions_the_last_ones_options_count() -> None:
    shown = "One?\nA. 1\nB. 2\nC. 3\n\n" + CHOICE
    assert measures(shown)["options"] == 4
    assert measures(shown)["longest_option"] == measures(CHOICE)["longest_option"]


def test_words_are_counted_by_kind() -> None:
    found = measures(CHOICE)
    counts = {kind: np.expm1(found[kind]) for kind in ("choosing", "negations", "people", "logic")}
    assert counts == pytest.approx({"choosing": 2, "negations": 1, "people": 1, "logic": 0})


def test_a_text_without_options_has_none_of_their_measures() -> None:
    found = measures("Walk 3 km in 20 minutes: how fast is that?")
    assert found["options"] == found["most_likeness"] == 0.0
    assert np.expm1(found["units"]) == pytest.approx(1.0)
    assert np.expm1(found["log_numbers"]) == pytest.approx(2.0)
