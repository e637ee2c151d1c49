"""The split: by a document's own text, about the share asked for, and no text on both sides."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.data.corpus import Document
from moestro.data.split import split
from moestro.errors import DataError
from tests.unit.data.conftest import make_document

MANY = tuple(make_document(number) for number in range(1000))


@given(seed=st.integers(0, 2**32), num_first=st.integers(100, 999))
def test_a_document_keeps_its_side_when_others_come(seed: int, num_first: int) -> None:
    before, after = split(MANY[:num_first], 0.1, seed), split(MANY, 0.1, seed)
    assert {*before.held_out} <= {*after.held_out}
    assert {*before.training} <= {*after.training}


def test_the_order_of_the_documents_does_not_matter() -> None:
    assert {*split(MANY, 0.1, 0).held_out} == {*split(MANY[::-1], 0.1, 0).held_out}


def test_the_share_is_about_what_was_asked_for() -> None:
    assert 70 <= len(split(MANY, 0.1, 0).held_out) <= 130
    assert len({split(MANY, 0.1, seed).held_out for seed in range(3)}) == 3


@given(number=st.integers(1, 30), share=st.floats(0.01, 0.5), seed=st.integers(0, 100))
def test_few_documents_still_give_both_sides(number: int, share: float, seed: int) -> None:
    parts = split(MANY[:number], share, seed)
    assert parts.training
    assert parts.held_out
    whole = "".join(document.text for document in MANY[:number])
    both = (*parts.training, *parts.held_out)
    assert sum(len(document.text) for document in both) == len(whole)


@pytest.mark.parametrize("seed", range(5))
def test_parts_of_one_long_document_stay_on_one_side(seed: int) -> None:
    parts = [
        replace(each, whole=str(number // 10), name=f"{number // 10}#{number % 10}")
        for number, each in enumerate(MANY)
    ]
    both = split(parts, 0.1, seed)
    held, trained = ({each.whole for each in side} for side in (both.held_out, both.training))
    assert held
    assert trained
    assert not held & trained
    # Nine documents are too few to choose among: the tail of a part is held out.
    assert len(split(parts[:90], 0.1, seed).held_out) == 1


def test_a_lone_document_gives_its_tail() -> None:
    text = "".join(f"line {number} of a book\n" for number in range(1000))
    parts = split([Document(text=text, name="book", domain="prose")], 0.05, 0)
    (head,), (tail,) = parts.training, parts.held_out
    assert head.text + tail.text == text
    assert head.text.endswith("\n")
    assert 0.04 < len(tail.text) / len(text) < 0.06
    assert (head.name, tail.name) == ("book", "book#tail")


def test_a_tail_is_no_larger_for_want_of_line_ends() -> None:
    text = "a title\n" + "".join(f"word {number} " for number in range(10_000))
    parts = split([Document(text=text, name="book", domain="prose")], 0.05, 0)
    (head,), (tail,) = parts.training, parts.held_out
    assert head.text + tail.text == text
    assert 0.04 < len(tail.text) / len(text) < 0.11


@pytest.mark.parametrize("texts", [[], ["x"], ["ab" * 100]])
def test_too_little_to_divide_is_an_error(texts: list[str]) -> None:
    documents = [Document(text=text, name="a", domain="prose") for text in texts]
    with pytest.raises(DataError, match="too little to hold any out"):
        split(documents, 0.05, 0)


def test_nothing_held_out_stands_inside_a_training_document() -> None:
    clean = split(MANY, 0.1, 0)
    victim = max(clean.held_out, key=lambda document: len(document.text))
    tiny = find_held_out("y = {}", 0.1)
    container = next(
        document
        for number in range(100)
        for document in [wrap(number, victim, tiny)]
        if document.draw("split", 0) >= 0.1
    )
    parts = split([*MANY, tiny, container], 0.1, 0)
    assert {*parts.dropped} == {victim, tiny}
    assert container in parts.training
    assert {*parts.held_out} == {*clean.held_out} - {victim}


def test_a_held_out_near_copy_of_training_text_is_dropped() -> None:
    draw = random.Random(0)
    lines = [f"row {draw.random()} of {draw.random()}\n" for _ in range(100)]
    few, many = lines[:], lines[:]
    few[::20] = [f"changed {number}\n" for number in range(5)]
    many[::2] = [f"other {draw.random()} words\n" for _ in range(50)]
    original, near, far = (
        find_side(lines, is_held=False),
        find_side(few, is_held=True),
        find_side(many, is_held=True),
    )
    parts = split([*MANY, original, near, far], 0.1, 0)
    assert near in parts.dropped
    assert original in parts.training
    assert far in parts.held_out


def find_side(lines: list[str], *, is_held: bool) -> Document:
    variants = ("".join([*lines, f"end {number}\n"]) for number in range(1000))
    documents = (Document(text=text, name="rows", domain="prose") for text in variants)
    return next(each for each in documents if (each.draw("split", 0) < 0.1) == is_held)


def find_held_out(pattern: str, share: float) -> Document:
    texts = (pattern.format(number) for number in range(1000))
    documents = (Document(text=text, name="tiny", domain="python") for text in texts)
    return next(document for document in documents if document.draw("split", 0) < share)


def wrap(number: int, *inside: Document) -> Document:
    text = f"# copy {number}\n" + "\n".join(document.text for document in inside) + "# end\n"
    return replace(inside[0], text=text, name="container")
