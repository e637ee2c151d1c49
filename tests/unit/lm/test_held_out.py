"""A review reads whole or fairly shortened text, and others are measured on the same bytes."""

from pathlib import Path

import pytest

from moestro.data import baselines
from moestro.data.corpus import Document
from moestro.lm.held_out import OTHERS, choose, measure_baselines, training_bytes
from tests.unit.lm import tiny


def test_all_of_it_is_chosen_if_it_fits() -> None:
    documents = tiny.documents()
    total = sum(len(document.text.encode()) for document in documents)
    chosen = choose(documents, total)
    assert chosen.num_bytes == chosen.total_bytes == total
    assert sorted(d.name for d in chosen.documents) == sorted(d.name for d in documents)


@pytest.mark.parametrize("max_bytes", [300, 900, 1500])
def test_a_choice_stays_within_its_limit_and_leaves_no_domain_out(max_bytes: int) -> None:
    chosen = choose(tiny.documents(), max_bytes)
    assert chosen.num_bytes <= max_bytes
    assert set(chosen.domains) == {"python", "c", "prose"}
    assert all(part and all(d.text for d in part) for part in chosen.domains.values())


def test_the_choice_does_not_depend_on_the_order() -> None:
    chosen = choose(tiny.documents(), 900)
    again = choose(tiny.documents()[::-1], 900)
    assert {d.name: d.text for d in chosen.documents} == {d.name: d.text for d in again.documents}


def test_beyond_the_twelve_largest_all_domains_are_one() -> None:
    sizes = {f"site-{number}": 100 + number for number in range(40)}
    documents = [Document(text="x" * size, name=name, domain=name) for name, size in sizes.items()]
    chosen = choose(documents, 10_000).domains
    assert {*chosen} == {*list(sizes)[-12:], OTHERS}
    assert [each.domain for each in chosen[OTHERS]] == list(sizes)[:-12]


def test_one_long_document_does_not_fill_its_domain() -> None:
    long = Document(text="word word word\n" * 500, name="long", domain="prose")
    others = [Document(text=f"{i} short\n" * 9, name=str(i), domain="prose") for i in range(40)]
    chosen = choose([long, *others], 1000)
    assert len(chosen.documents) > 3
    assert max(len(d.text) for d in chosen.documents) <= 250


def test_many_documents_each_give_one_piece_from_anywhere_in_them() -> None:
    def write(index: int) -> str:
        return "".join(f"{index} line {line} of a long document\n" for line in range(2_000))

    documents = [Document(text=write(i), name=str(i), domain="python") for i in range(99)]
    chosen = choose(documents, 500_000)
    pieces = {piece.name: piece.text for piece in chosen.documents}
    sizes = [len(text) for text in pieces.values()]
    assert len(sizes) >= 64
    assert 5_000 < min(sizes[:-1]) <= max(sizes) <= 500_000 // 64
    whole = {document.name: document.text for document in documents}
    begins = [whole[name].index(text) / len(whole[name]) for name, text in pieces.items()]
    assert all(text.endswith("\n") for text in pieces.values())
    assert sum(begin > 0.5 for begin in begins) > 16
    assert sum(begin < 0.5 for begin in begins) > 16


@pytest.mark.parametrize("fim_rate", [0.0, 1.0])
def test_training_text_is_read_back_from_its_ids(tmp_path: Path, fim_rate: float) -> None:
    data = tiny.shards(tmp_path, fim_rate)
    text = training_bytes(data, tiny.tokenizer(), 1_000_000)
    training = tiny.documents()[6:]
    assert all(document.text.encode() in text for document in training)
    num_borders = len(text) - sum(len(document.text.encode()) for document in training)
    assert num_borders == (5 * (len(training) - 1) if fim_rate == 0 else 0)
    assert training_bytes(data, tiny.tokenizer(), 100) == text[:100]


def test_baselines_of_a_choice_are_measured_on_its_very_bytes(tmp_path: Path) -> None:
    data = tiny.shards(tmp_path)
    chosen = choose(data.held_out, 400)
    found = measure_baselines(chosen, data, tiny.tokenizer())
    texts = [document.text.encode() for document in chosen.documents]
    training = training_bytes(data, tiny.tokenizer(), 1_000_000)
    assert found == {
        "gzip": baselines.gzip_bits_per_byte(b"".join(texts)),
        "xz": baselines.xz_bits_per_byte(b"".join(texts)),
        "ngram": baselines.ngram_bits_per_byte(training, texts),
    }


def test_the_runs_own_baselines_stand_for_all_of_the_text(tmp_path: Path) -> None:
    data = tiny.shards(tmp_path)
    data.about["baselines"] = {"gzip": 1.0, "xz": 2.0, "ngram": 3.0}
    whole, part = choose(data.held_out, 1_000_000), choose(data.held_out, 400)
    assert measure_baselines(whole, data, tiny.tokenizer()) == data.about["baselines"]
    assert measure_baselines(part, data, tiny.tokenizer()) != data.about["baselines"]
