"""Thoughts and answer are told apart wherever the borders between texts lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.text.reasoning import THINK, ReasoningStream, ReasoningTags, detect_tags, is_open
from tests.unit.text.cuts import cut

CUTS = st.lists(st.integers(0, 60), max_size=8)
PARTS = st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", " ", "\n", "a", "b c"]))


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("<think>\nwhy\n</think>\n\nyes", False, "why", "yes"),
        ("why so</think>yes", True, "why so", "yes"),
        ("\n <think>why</think>yes", False, "why", "yes"),
        ("yes, <think>no</think>", False, "", "yes, <think>no</think>"),
        ("<think></think>yes", False, "", "yes"),
        ("why <think> a</think>b</think>c", True, "why <think> a", "b</think>c"),
        ("a < b </thin", True, "a < b </thin", ""),
        ("<thin", False, "", "<thin"),
        (" plain", False, "", " plain"),
        ("", True, "", ""),
    ],
)
def test_thoughts_are_split_from_the_answer(
    text: str, opened: bool, reasoning: str, answer: str
) -> None:
    assert split([text], opened=opened) == (reasoning, answer)
    assert split(list(text), opened=opened) == (reasoning, answer)


@given(parts=PARTS, places=CUTS, opened=st.booleans())
def test_borders_between_texts_change_nothing(
    parts: list[str], places: list[int], opened: bool
) -> None:
    text = "".join(parts)
    assert split(cut(text, places), opened=opened) == split([text], opened=opened)


@given(parts=PARTS, opened=st.booleans())
def test_nothing_but_tags_and_white_space_is_lost(parts: list[str], opened: bool) -> None:
    text = "".join(parts)
    reasoning, answer = split([text], opened=opened)
    both = "".join((reasoning + answer).split())
    without_tags = text.replace("<think>", "").replace("</think>", "")
    assert both.replace("<think>", "").replace("</think>", "") == "".join(without_tags.split())


def test_thoughts_come_out_as_they_grow() -> None:
    stream = ReasoningStream(opened=True)
    assert [stream.push(text) for text in ("so", " it ", "is</", "think", "> yes")] == [
        ("so", ""),
        (" it", ""),
        (" is", ""),
        ("", ""),
        ("", "yes"),
    ]
    assert not stream.is_reasoning


def test_tags_are_found_in_the_template() -> None:
    assert detect_tags("{{ content.split('</think>')[-1] }}") == THINK
    assert detect_tags("[THINK]{{ thoughts }}[/THINK]") == ReasoningTags("[THINK]", "[/THINK]")
    assert detect_tags("{{ content }}") is None


def test_a_prompt_that_opens_the_thoughts_is_recognized() -> None:
    assert is_open("<|user|>hi<|assistant|><think>\n")
    assert not is_open("<|user|>what does <think> mean?<|assistant|>")
    assert not is_open("<|user|>hi<|assistant|><think>\n\n</think>\n\n")


def split(texts: list[str], *, opened: bool) -> tuple[str, str]:
    stream = ReasoningStream(opened)
    pairs = [*map(stream.push, texts), stream.finish()]
    return "".join(first for first, _ in pairs), "".join(second for _, second in pairs)
