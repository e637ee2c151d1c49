"""Text as it grows: pieces join to the decoded text, and stop strings stop across borders."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import ConfigError
from moestro.text.stream import TextStream
from moestro.text.tokenizer import Tokenizer

IDS = st.lists(st.integers(0, 400))
STOPS = st.lists(st.text("abc", min_size=1, max_size=3), max_size=3)


def stream(text_stream: TextStream, ids: list[int]) -> list[str]:
    return [*map(text_stream.push, ids), text_stream.finish()]


@given(ids=IDS)
def test_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(stream(TextStream(tokenizer), ids)) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 263)), continues=st.booleans())
def test_pieces_join_in_a_llama_tokenizer_too(
    fallback_tokenizer: Tokenizer, ids: list[int], continues: bool
) -> None:
    pieces = stream(TextStream(fallback_tokenizer, continues=continues), ids)
    assert "".join(pieces) == fallback_tokenizer.decode(ids, continues=continues)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(TextStream(tokenizer), tokenizer.encode(text))
    assert "".join(pieces) == text
    assert pieces[-1] == ""


@given(text=st.text("abc", max_size=12), stops=STOPS)
def test_a_stop_string_stops_wherever_the_borders_lie(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    text_stream = TextStream(tokenizer, stops)
    answer = "".join(stream(text_stream, [*map(id_of(tokenizer), text)]))
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert answer == (text[: min(ends)[1]] if ends else text)
    assert (text_stream.stop in stops) if ends else (text_stream.stop is None)
    keeping = TextStream(tokenizer, stops, kept=stops)
    whole = "".join(stream(keeping, [*map(id_of(tokenizer), text)]))
    assert whole == answer + (text_stream.stop or "")


def test_text_that_may_begin_a_stop_string_waits(tokenizer: Tokenizer) -> None:
    text_stream = TextStream(tokenizer, ["abc"])
    pieces = stream(text_stream, [*map(id_of(tokenizer), "xabab")])
    assert pieces == ["x", "", "", "ab", "", "ab"]
    assert text_stream.stop is None


def test_nothing_comes_after_a_stop_string(tokenizer: Tokenizer) -> None:
    text_stream = TextStream(tokenizer, ["b"])
    assert stream(text_stream, [*map(id_of(tokenizer), "abcd")]) == ["a", "", "", "", ""]
    assert text_stream.stop == "b"


def test_a_character_cut_in_half_ends_as_a_replacement(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("\u00e9")
    assert stream(TextStream(tokenizer), [first]) == ["", "\ufffd"]


def test_an_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="stop string is empty"):
        TextStream(tokenizer, [""])


def id_of(tokenizer: Tokenizer) -> Callable[[str], int]:
    """Return a function from a letter to the id of its one-byte token."""
    table = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    return lambda letter: table[letter.encode()]
