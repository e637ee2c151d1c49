"""A learned vocabulary: lossless for any text, the same every time, with borders that suit code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import ConfigError
from moestro.text.learn import NUM_BYTES, SPECIAL_TOKENS, learn
from moestro.text.tokenizer import Tokenizer
from tests.unit.text.conftest import SAMPLE

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
# Names of special tokens, whole and in part, among other text.
AWKWARD = st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "\r\n", "\n    ", "\u00e9", "x"]))


@given(text=TEXTS)
def test_any_unicode_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(pieces=AWKWARD)
def test_special_strings_in_a_text_stay_text(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {*ids} & {*range(len(SPECIAL_TOKENS))}


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    tokens = {tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(NUM_BYTES)} <= tokens


def test_the_same_texts_give_the_same_tokenizer() -> None:
    first, second = learn(SAMPLE, 300), learn(iter(SAMPLE), 300)
    assert first.fingerprint == second.fingerprint


def test_the_vocabulary_has_the_size_that_was_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 320
    assert learn(["nothing twice"], 5000).vocab_size < 300


def test_special_tokens_have_the_first_ids(tokenizer: Tokenizer) -> None:
    names = tuple(tokenizer.token_text(token_id) for token_id in range(4))
    assert names == SPECIAL_TOKENS
    assert tokenizer.eos_id == tokenizer.bos_id == 0
    assert tokenizer.fim is not None
    assert tokenizer.fim.prompt([9], [8]) == [1, 9, 2, 8, 3]


def test_numbers_are_cut_into_three_digits_and_indentation_is_not_cut() -> None:
    tokenizer = learn(["x = 1234567\n" + " " * 12 + "1234567\n"] * 50, 320)
    pieces = [
        tokenizer.token_text(token) for token in tokenizer.encode("\n" + " " * 12 + "1234567")
    ]
    assert pieces == ["\n", " " * 12, "123", "456", "7"]


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size is 259: .* take 260"):
        learn(SAMPLE, 259)
    with pytest.raises(ConfigError, match="special_tokens is empty"):
        learn(SAMPLE, 300, special_tokens=())
