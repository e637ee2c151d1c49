"""Samples are real places of held-out text, chosen the same every time, that fit the model."""

import pytest

from moestro.data.corpus import Document
from moestro.lm.samples import HeldOutPassage, choose_passages, complete, cut
from tests.unit.lm import tiny


def document(text: str, name: str = "a.py", domain: str = "python") -> Document:
    return Document(text=text, name=name, domain=domain)


def test_functions_come_first_and_begin_after_their_docstring() -> None:
    passages = choose_passages(tiny.documents(), tiny.tokenizer(), 200)
    assert [passage.domain for passage in passages] == ["python"] * 3
    assert len({passage.name for passage in passages}) == 3
    for passage in passages:
        assert passage.prompt.endswith('"""\n')
        assert passage.name.rpartition(":")[2] in ("area", "volume")
        whole = next(d.text for d in tiny.documents() if d.name == passage.name.split(":")[0])
        assert passage.prompt + passage.reference in whole


def test_the_choice_depends_on_the_documents_alone() -> None:
    forward = choose_passages(tiny.documents(), tiny.tokenizer(), 200)
    assert choose_passages(tiny.documents()[::-1], tiny.tokenizer(), 200) == forward


def test_a_reference_ends_with_its_function_or_at_a_blank_line() -> None:
    passages = choose_passages(tiny.documents(), tiny.tokenizer(), 200, num=4)
    ends = {passage.name.rpartition(":")[2]: passage.reference for passage in passages}
    assert set(ends) == {"area", "volume"}
    assert ends["area"].endswith("return math.pi * square")
    assert ends["volume"].endswith("self.seen = True")


def test_other_text_is_cut_at_a_lines_end() -> None:
    others = [each for each in tiny.documents() if each.domain != "python"]
    passages = choose_passages(others, tiny.tokenizer(), 200)
    assert len(passages) == 3
    for passage in passages:
        assert passage.prompt.endswith("\n")
        assert passage.reference


def test_a_text_of_one_line_is_cut_between_words() -> None:
    one = document("one two three four five six", "a.txt", "prose")
    (passage,) = choose_passages([one], tiny.tokenizer(), 200)
    assert passage.prompt.endswith(" ")
    assert passage.prompt + passage.reference == one.text


@pytest.mark.parametrize(
    "text",
    [
        "def broken(:\n    pass\n",
        "x = 1\n",
        "def f(): return 1\n",
        "def f():\n    '''Only words.'''\n",
        "def f():\n    a = 1\n    return a\n",
        "x = '\\d'\n\x0cy = 2\nz = 3\n",
    ],
    ids=["no Python", "no function", "one line", "docstring only", "too short", "form feed"],
)
def test_python_without_a_fitting_function_is_cut_like_any_text(text: str) -> None:
    passages = choose_passages([document(text)], tiny.tokenizer(), 200)
    assert all(":" not in passage.name for passage in passages)


def test_nothing_comes_of_text_too_short_to_cut() -> None:
    empty = [document(" \n", "a"), document("word", "b"), document("", "c")]
    assert choose_passages(empty[::2], tiny.tokenizer(), 200) == []
    assert choose_passages([], tiny.tokenizer(), 200) == []


@pytest.mark.parametrize("max_tokens", [24, 40, 80])
def test_a_prompt_fits_and_keeps_its_signature(max_tokens: int) -> None:
    tokenizer = tiny.tokenizer()
    for passage in choose_passages(tiny.documents(), tokenizer, max_tokens):
        assert len(tokenizer.encode(passage.prompt)) <= max_tokens
        if ":" in passage.name:
            assert "def " in passage.prompt


@pytest.mark.parametrize(
    ("text", "margin", "wanted"),
    [
        ("    a\n    b\n\n    c\n", 0, "    a\n    b"),
        ("    a\n        b\nc\n", 0, "    a\n        b"),
        ("\n\n    a\n", 0, "    a"),
        ("        a\n    b\n", 4, "        a"),
        ("a\nb\nc", None, "a\nb\nc"),
        ("a\n\nb", None, "a"),
        ("", 0, ""),
        ("a", 0, "a"),
    ],
)
def test_a_completion_ends_where_the_function_or_paragraph_does(
    text: str, margin: int | None, wanted: str
) -> None:
    assert cut(text, margin) == wanted


def test_a_completion_is_the_models_greedy_one() -> None:
    lm = tiny.language_model()
    passage = HeldOutPassage(
        name="x", domain="python", prompt="def area(radius):\n", reference="    pass"
    )
    sample = complete(lm, passage, max_tokens=12, experts=3.0)
    whole = lm.generate(passage.prompt, max_tokens=12, experts=3.0)
    assert sample.completion == cut(whole.text, None)
    assert sample.mean_experts is not None
    assert 2 <= sample.mean_experts <= 4
    assert sample.to_dict()["reference"] == "    pass"


def test_a_dense_model_completes_without_experts() -> None:
    lm = tiny.language_model(**tiny.DENSE)
    passage = HeldOutPassage(name="x", domain="prose", prompt="The box", reference="")
    assert complete(lm, passage, max_tokens=4).mean_experts is None
