"""Text and tokens of an answer leave together, whatever the borders between tokens."""

from hypothesis import given
from hypothesis import strategies as st

from moestro.api.chunks import Token
from moestro.backends.speech import Speech
from moestro.text.tokenizer import Tokenizer
from tests.unit.backends.local_parts import tokenizer

WORDS = tokenizer()
TEXTS = st.text(alphabet="ab*r\n\u00e9\u4e2d\U0001f600", max_size=30)


def tokens(text: str, words: Tokenizer = WORDS) -> list[Token]:
    return [describe(token_id) for token_id in words.encode(text)]


def describe(token_id: int) -> Token:
    return Token(
        token_id=token_id, text=WORDS.token_text(token_id), data=WORDS.token_bytes(token_id)
    )


def speak(speech: Speech, said: list[Token]) -> tuple[str, list[Token]]:
    text, shown = "", []
    for token in said:
        if speech.stop is not None:
            break
        more, certain = speech.push(token)
        text, shown = text + more, shown + certain
    more, certain = speech.finish()
    return text + more, shown + certain


@given(TEXTS)
def test_without_a_stop_string_all_comes_out_in_order(text: str) -> None:
    said = tokens(text)
    assert speak(Speech(WORDS), said) == (text, said)


@given(TEXTS, st.lists(st.text(alphabet="ab*r\n\u00e9", min_size=1, max_size=4), max_size=3))
def test_tokens_shown_are_those_whose_text_is_shown(text: str, stops: list[str]) -> None:
    said = tokens(text)
    speech = Speech(WORDS, stops)
    spoken, shown = speak(speech, said)
    cuts = [text.find(stop) for stop in stops if stop in text]
    assert (speech.stop is not None) == bool(cuts)
    assert text.startswith(spoken)
    assert shown == said[: len(shown)]
    data = b"".join(token.data for token in shown)
    assert data.startswith(spoken.encode())
    if shown and shown[-1].data.isascii():
        # The last one shown has at least begun before the cut.
        assert len(data) - len(shown[-1].data) <= len(spoken.encode())


def test_what_may_be_a_stop_string_is_held_with_its_tokens() -> None:
    speech = Speech(WORDS, ["*b"])
    first, second, third = tokens("a") + tokens("*") + tokens("r")
    assert speech.push(first) == ("a", [first])
    assert speech.push(second) == ("", [])
    assert speech.push(third) == ("*r", [second, third])


def test_half_a_character_is_shown_as_a_token_before_it_is_as_text() -> None:
    speech = Speech(WORDS)
    halves = tokens("\u00e9")
    assert len(halves) == 2
    assert speech.push(halves[0]) == ("", halves[:1])
    assert speech.push(halves[1]) == ("\u00e9", halves[1:])


def test_a_special_token_is_text_only_if_it_is_a_mark() -> None:
    special = describe(WORDS.eos_id)
    assert special.data == b""
    said = [*tokens("a"), special, *tokens("b")]
    assert speak(Speech(WORDS), said) == ("ab", said)
    assert speak(Speech(WORDS, marks=["</x>"]), said) == ("ab", said)
    marked = Speech(WORDS, marks=[f"{special.text}json"])
    assert speak(marked, said) == (f"a{special.text}b", said)


def test_a_stop_string_counts_on_both_sides_of_a_mark() -> None:
    special = describe(WORDS.eos_id)
    for said in ([*tokens("ar*"), special], [*tokens("b"), special, *tokens("ar*rest")]):
        speech = Speech(WORDS, ["r*"], marks=[special.text])
        text, _ = speak(speech, said)
        assert speech.stop == "r*"
        assert text.endswith("a")
        assert "*" not in text
