"""Tokens found and coded side by side are those found one by one, whatever a text holds."""

import hashlib
import zlib

import numpy as np
import pytest

from moestro.policy.features import read
from moestro.policy.tokens import count_same, read_one_by_one, read_tokens

# Letters with accents and of other alphabets, digits and spaces of all kinds, half a pair, a face.
ALPHABET = (
    "abcxyz 019.,?\n\t_%$=<>(){};-\u00e9\u00df\u03a3\u00b2\u0663\u4e2d\u00a0\u2028\u201c\u201d"
)
ALPHABET += "\u0131\u0307\u0327\u0e01\u0e31\u0e51\U0001f600\U0001d538\ud800\x1c\x85"
ASKED = (
    "Solve for x: 3x + 12,000.5 kg = ...? It costs $5, NOT 7%.\n\nWhich na\u00efve "
    "\u201cquote\u201d is best\u00a0here, \u4e2d\u6587 x\u00b2 ___?\nA. Only the first one\n"
    "B. 42\nC. def f(): return {}\n"
)


def assert_same(text: str) -> None:
    fast, slow = read_tokens(text), read_one_by_one(text)
    for name in ("codes_N", "sizes_N", "is_word_N"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), repr(text))


@pytest.mark.parametrize("signs", [ALPHABET[:28], ALPHABET[:31], ALPHABET])
def test_parity_read_side_by_side_or_one_by_one(signs: str) -> None:
    draw = np.random.default_rng(0)
    for size in draw.integers(0, 60, 500):
        assert_same("".join(draw.choice([*signs], size)).lower())


@pytest.mark.parametrize(
    "text", ["", " \n ", "_", "a", "7", "?", "x" * 32, "x" * 33, "\u00e9" * 17]
)
def test_parity_where_there_is_little_or_a_word_is_long(text: str) -> None:
    assert_same(text)
    assert_same(f"so {text} is")


def test_a_token_s_code_is_its_checksum_and_numbers_of_as_many_digits_share_one() -> None:
    found = read_tokens("a caf\u00e9, 1987")
    words = ["a", "caf\u00e9", ",", "0000"]
    assert found.codes_N.tolist() == [zlib.crc32(word.encode()) for word in words]
    assert found.sizes_N.tolist() == [1, 4, 1, 4]
    assert found.is_word_N.tolist() == [True, True, False, False]


def test_each_letter_is_a_word_where_words_stand_without_spaces() -> None:
    for text in ("\u732b\u5750\u4e0b", "\u0e01\u0e02\u0e04", "\u30cd\u30b3\u3060"):
        found = read_tokens(f"cat {text} ok")
        words = ["cat", *text, "ok"]
        assert found.codes_N.tolist() == [zlib.crc32(word.encode()) for word in words]
        assert found.sizes_N.tolist() == [3, 1, 1, 1, 2]
        assert found.is_word_N.all()


def test_prompts_without_spaces_share_what_they_have_in_common() -> None:
    one, other = (read(text).buckets for text in ("\u732b\u5750\u4e0b", "\u9ed1\u732b\u5750"))
    # Two letters, and the pair of them.
    assert len(np.intersect1d(one, other)) == 3


def test_equal_values_are_counted_together() -> None:
    found, counts = count_same(np.array([3, 1, 3, 3, 2], dtype=np.uint16))
    assert found.tolist() == [1, 2, 3]
    assert counts.tolist() == [1, 1, 3]
    assert [len(part) for part in count_same(np.zeros(0, dtype=np.uint32))] == [0, 0]


def test_a_text_s_buckets_stay_those_that_saved_policies_learned_from() -> None:
    buckets = read(ASKED).buckets.astype("<i8").tobytes()
    assert hashlib.blake2b(buckets, digest_size=8).hexdigest() == "a4a2fc681590cf97"
