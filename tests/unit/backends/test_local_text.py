"""What of a prompt is read and of an answer is shown, where a request has a wish as to that."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from moestro.api.sampling import SamplingWish
from moestro.errors import ConfigError, ContextLengthError
from tests.unit.backends.local_parts import ask, build, chat, chunks, completion, text_of, tokenizer

NAME = "<|turn|>"
WORDS = tokenizer(NAME)
END = WORDS.token_text(WORDS.eos_id)


def shown(pieces: Any) -> bytes:
    return b"".join(token.data for chunk in chunks(pieces) for token in chunk.tokens)


@pytest.mark.parametrize("ask_for", [completion, chat])
def test_a_stop_string_can_be_the_answers_last_part(ask_for: Any) -> None:
    backend, _ = build("return radius * 2 + radius", ends=False)
    pieces = ask(backend, ask_for(stops=("us * 2",), keeps_stop=True, max_tokens=40))
    assert text_of(pieces) == "return radius * 2"
    assert shown(pieces) == b"return radius * 2"
    assert [chunk.stop for chunk in chunks(pieces) if chunk.finish] == ["us * 2"]


def test_a_stop_string_of_the_template_is_no_part_of_the_answer() -> None:
    backend, _ = build("Four.\n\nUser: and then?", ends=False)
    assert text_of(ask(backend, chat(keeps_stop=True, max_tokens=40))) == "Four."


def test_a_stop_token_can_be_the_answers_last_part() -> None:
    backend, _ = build("area radius", ends=False)
    ids = tokenizer().encode("area radius")
    for keeps_stop, expected in ((False, ids[:-1]), (True, ids)):
        asked = completion(stop_token_ids=(ids[-1],), keeps_stop=keeps_stop, max_tokens=40)
        pieces = ask(backend, asked)
        assert text_of(pieces) == tokenizer().decode(expected)
        assert shown(pieces).decode() == text_of(pieces)
        assert [chunk.stop for chunk in chunks(pieces) if chunk.finish] == [ids[-1]]
        usage = chunks(pieces)[-1].usage
        assert usage is not None
        assert usage.completion_tokens == len(ids)


def test_a_models_own_end_is_no_stop_that_is_told() -> None:
    backend, _ = build("area")
    assert [chunk.stop for chunk in chunks(ask(backend, completion())) if chunk.finish] == [None]


@pytest.mark.parametrize("ask_for", [completion, chat])
def test_special_tokens_are_shown_by_their_names_where_they_are_asked_for(ask_for: Any) -> None:
    backend, _ = build(f"area{NAME}radius", names=[NAME])
    assert text_of(ask(backend, ask_for(max_tokens=40))) == "arearadius"
    pieces = ask(backend, ask_for(max_tokens=40, shows_special=True))
    assert text_of(pieces) == shown(pieces).decode() == f"area{NAME}radius"
    whole = ask(backend, ask_for(max_tokens=40, shows_special=True, keeps_stop=True))
    assert text_of(whole) == f"area{NAME}radius{END}"


def test_a_stop_string_can_be_a_special_tokens_name_where_names_are_shown() -> None:
    backend, _ = build(f"area{NAME}radius", names=[NAME])
    pieces = ask(backend, completion(max_tokens=40, shows_special=True, stops=(f"a{NAME}r",)))
    assert text_of(pieces) == "are"


def test_a_special_tokens_name_in_a_prompt_is_text_unless_the_request_says_otherwise() -> None:
    backend, engine = build(names=[NAME])
    text = f"def{NAME}area"
    ask(backend, completion(text))
    assert engine.requests[-1].prompt == (WORDS.bos_id, *WORDS.encode(text))
    ask(backend, completion(text, splits_special_tokens=False))
    (special,) = WORDS.encode_trusted(NAME)
    expected = (*WORDS.encode("def"), special, *WORDS.encode("area"))
    assert engine.requests[-1].prompt == (WORDS.bos_id, *expected)
    ask(backend, completion("def", suffix=NAME, splits_special_tokens=False))
    assert special in engine.requests[-1].prompt


def test_an_echo_shows_special_tokens_too() -> None:
    backend, _ = build("area", names=[NAME])
    prompt = tuple(WORDS.encode_trusted(f"def{NAME}"))
    assert text_of(ask(backend, completion(prompt, echo=True))) == "defarea"
    named = ask(backend, completion(prompt, echo=True, shows_special=True))
    assert text_of(named) == f"def{NAME}area"


def test_a_prompts_last_tokens_are_kept_behind_the_token_that_texts_begin_with() -> None:
    backend, engine = build()
    ids = tokenizer().encode("def area(radius)")
    for most, has_special, expected in (
        (4, True, [tokenizer().bos_id, *ids[-3:]]),
        (4, False, ids[-4:]),
        (1, True, [tokenizer().bos_id]),
        (len(ids) + 1, True, [tokenizer().bos_id, *ids]),
    ):
        ask(
            backend,
            completion(
                "def area(radius)", truncate_prompt_tokens=most, has_special_tokens=has_special
            ),
        )
        assert list(engine.requests[-1].prompt) == expected
    ask(backend, completion(tuple(ids), truncate_prompt_tokens=2))
    assert list(engine.requests[-1].prompt) == ids[-2:]
    ask(backend, completion("def area(radius)", truncate_prompt_tokens=4, echo=True))
    assert list(engine.requests[-1].prompt) == [tokenizer().bos_id, *ids[-3:]]


def test_a_conversations_last_tokens_are_kept() -> None:
    backend, engine = build()
    ask(backend, chat("area"))
    ask(backend, chat("area", truncate_prompt_tokens=3))
    assert engine.requests[1].prompt == engine.requests[0].prompt[-3:]


def test_a_truncated_prompt_leaves_room_for_the_answer() -> None:
    backend, engine = build()
    overlong = tuple(tokenizer().encode("radius " * 300))
    with pytest.raises(ContextLengthError):
        ask(backend, completion(overlong))
    for fields, room in (
        ({"max_tokens": 20}, 20),
        ({"max_tokens": None}, 1),
        ({"sampling": SamplingWish(min_tokens=7), "max_tokens": None}, 7),
    ):
        ask(backend, completion(overlong, truncate_prompt_tokens=-1, **fields))
        assert len(engine.requests[-1].prompt) == 256 - room
        assert engine.requests[-1].max_tokens == room


def test_a_gap_is_not_cut() -> None:
    backend, _ = build()
    with pytest.raises(ConfigError, match="truncate_prompt_tokens and suffix do not go together"):
        ask(backend, completion(suffix="x", truncate_prompt_tokens=3))


def test_a_conversation_can_begin_with_the_token_that_texts_begin_with() -> None:
    backend, _ = build()
    plain = asyncio.run(backend.tokenize(chat("area")))
    begun = asyncio.run(backend.tokenize(replace(chat("area"), has_special_tokens=True)))
    assert begun == [tokenizer().bos_id, *plain]


def test_bad_words_are_spelled_as_they_are_and_behind_a_space() -> None:
    backend, engine = build()
    ask(backend, completion(bad_words=("radius", " return", "\n")))
    words = tokenizer()
    spelled = {tuple(words.encode(text)) for text in ("radius", " radius", "return", " return")}
    assert set(engine.requests[0].bad_words) == spelled | {
        tuple(words.encode("\n")), tuple(words.encode(" \n")),
    }  # fmt: skip
