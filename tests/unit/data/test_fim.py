"""Fill-in-the-middle: pieces join to the document, cuts are its own, ids stand in PSM order."""

from hypothesis import given
from hypothesis import strategies as st

from moestro.data import fim
from moestro.data.corpus import Document
from moestro.text.tokenizer import Tokenizer
from tests.unit.data.conftest import make_document

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(text=TEXTS, max_bytes=st.sampled_from([0, 16, 60]), seed=st.integers(0, 1000))
def test_pieces_join_to_the_document(text: str, max_bytes: int, seed: int) -> None:
    document = Document(text=text, name="a", domain="prose")
    cuts = fim.cut(document, max_bytes, seed)
    assert "".join(prefix + middle + suffix for prefix, middle, suffix in cuts) == text
    if max_bytes:
        assert all(len("".join(each).encode()) <= max_bytes for each in cuts)
    else:
        assert len(cuts) == 1


@given(text=TEXTS)
def test_ids_come_back_as_the_pieces(tokenizer: Tokenizer, text: str) -> None:
    document = Document(text=text, name="a", domain="prose")
    cuts = fim.cut(document, 40, 0)
    assert tokenizer.fim is not None
    ids = tokenizer.encode_batch([piece for each in cuts for piece in each])
    for example, (prefix, middle, suffix) in zip(
        fim.arrange(ids, tokenizer.fim), cuts, strict=True
    ):
        place = [example.index(mark) for mark in (1, 2, 3)]
        assert place == sorted(place)
        assert place[0] == 0
        assert tokenizer.decode(example[1 : place[1]]) == prefix
        assert tokenizer.decode(example[place[1] + 1 : place[2]]) == suffix
        assert tokenizer.decode(example[place[2] + 1 :]) == middle


def test_cuts_depend_on_the_document_and_the_seed_alone() -> None:
    document = make_document(3)
    assert fim.cut(document, 100, 0) == fim.cut(make_document(3), 100, 0)
    assert fim.cut(document, 100, 0) != fim.cut(document, 100, 1)
