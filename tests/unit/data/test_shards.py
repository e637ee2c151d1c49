"""Ids on disk: every document is there, whole, between ends; damage is found and named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moestro.data import shards
from moestro.data.config import DataConfig
from moestro.data.corpus import CorpusStats, Document
from moestro.data.split import Split, split
from moestro.errors import CheckpointError, ConfigError, StorageError
from moestro.text.tokenizer import Tokenizer

CONFIG = DataConfig(fim_rate=0.0)


@pytest.fixture(scope="session")
def parts(documents: tuple[Document, ...]) -> Split:
    return split(documents, 0.1, 0)


@pytest.fixture
def folder(parts: Split, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    shards.prepare(parts, tokenizer, CONFIG, tmp_path / "data")
    return tmp_path / "data"


def texts_of(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    ends = np.flatnonzero(tokens == tokenizer.eos_id)
    pieces = np.split(tokens, ends)
    return [tokenizer.decode(piece.tolist()) for piece in pieces[1:]]


def test_every_training_document_stands_between_two_ends(
    folder: Path, parts: Split, tokenizer: Tokenizer
) -> None:
    loaded = shards.load(folder, is_thorough=True)
    assert loaded.tokens[0] == loaded.tokens[-1] == tokenizer.eos_id
    *texts, last = texts_of(loaded.tokens, tokenizer)
    assert last == ""
    assert sorted(texts) == sorted(document.text for document in parts.training)
    assert texts != [document.text for document in parts.training]


def test_held_out_documents_come_back_as_they_were(folder: Path, parts: Split) -> None:
    assert shards.load(folder).held_out == parts.held_out


def test_ids_are_mapped_and_not_copied(folder: Path) -> None:
    tokens = shards.load(folder).tokens
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16


def test_counts_by_domain_are_kept(folder: Path, parts: Split) -> None:
    loaded = shards.load(folder)
    training = loaded.about["training"]
    assert training["num_tokens"] == len(loaded.tokens)
    assert sum(each["num_tokens"] for each in training["domains"].values()) == len(loaded.tokens)
    assert {*training["domains"]} == {"python", "c"}
    assert training["num_documents"] == len(parts.training)
    held_out = loaded.about["held_out"]["domains"]
    num_bytes = sum(len(document.text) for document in parts.held_out)
    assert sum(each["num_bytes"] for each in held_out.values()) == num_bytes


def test_the_same_settings_give_the_same_bytes(
    folder: Path, parts: Split, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    stats, baselines = CorpusStats(), {"gzip": 2.0}
    shards.prepare(parts, tokenizer, CONFIG, tmp_path / "again", stats, baselines)
    first, second = shards.load(folder), shards.load(tmp_path / "again")
    assert np.array_equal(first.tokens, second.tokens)
    assert first.about["fingerprint"] == second.about["fingerprint"]
    assert second.about["baselines"] == baselines
    assert second.about["corpus"]["left_out"]["binary"] == 0


def test_the_fingerprint_tells_configurations_apart(tokenizer: Tokenizer) -> None:
    configs = (CONFIG, DataConfig(seed=1), DataConfig(paths=("other",)))
    assert len({shards.fingerprint(config, tokenizer) for config in configs}) == 3


def test_a_share_of_the_documents_is_told_as_fill_in_the_middle(
    parts: Split, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = DataConfig(fim_rate=0.5, fim_bytes=0)
    shards.prepare(parts, tokenizer, config, tmp_path / "data")
    loaded = shards.load(tmp_path / "data")
    num_fim = sum(shards.is_fim(document, config) for document in parts.training)
    assert 0.35 < num_fim / len(parts.training) < 0.65
    assert loaded.about["training"]["num_fim_documents"] == num_fim
    for mark in (1, 2, 3):
        assert int((loaded.tokens == mark).sum()) == num_fim


def test_short_fill_in_the_middle_examples_are_texts_of_their_own(
    parts: Split, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shards.prepare(parts, tokenizer, DataConfig(fim_rate=1.0, fim_bytes=64), tmp_path / "data")
    tokens = shards.load(tmp_path / "data").tokens
    assert int((tokens == 1).sum()) > 2 * len(parts.training)
    assert np.array_equal(np.flatnonzero(tokens == 1) - 1, np.flatnonzero(tokens == 0)[:-1])


def test_a_tokenizer_with_two_ends_puts_each_at_its_own(
    parts: Split, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    settings = {"bos_token": "<|fim_prefix|>", "eos_token": "<|end_of_text|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    shards.prepare(parts, Tokenizer.load(tmp_path), CONFIG, tmp_path / "data")
    tokens = shards.load(tmp_path / "data").tokens
    begins, ends = np.flatnonzero(tokens == 1), np.flatnonzero(tokens == 0)
    assert begins[0] == 0
    assert np.array_equal(begins[1:], ends[:-1] + 1)


def test_a_large_vocabulary_takes_four_bytes(
    parts: Split, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["model"]["vocab"]["a far token"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    shards.prepare(parts, Tokenizer.load(tmp_path), CONFIG, tmp_path / "data")
    assert shards.load(tmp_path / "data").tokens.dtype == np.uint32


def test_fill_in_the_middle_needs_a_tokenizer_that_has_it(
    parts: Split, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    raw = (tmp_path / "tokenizer.json").read_text().replace("<|fim_", "<|other_")
    (tmp_path / "tokenizer.json").write_text(raw)
    with pytest.raises(ConfigError, match="no fill-in-the-middle tokens"):
        shards.prepare(parts, Tokenizer.load(tmp_path), DataConfig(fim_rate=0.5), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_is_there_is_never_overwritten(
    folder: Path, parts: Split, tokenizer: Tokenizer
) -> None:
    before = shards.load(folder).about
    with pytest.raises(StorageError):
        shards.prepare(parts, tokenizer, DataConfig(seed=1), folder)
    assert shards.load(folder).about == before


def cut_short(data: bytes) -> bytes:
    return data[:-2]


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train.bin", cut_short, r"train\.bin: \d+ bytes, expected"),
        ("train.bin", flip, r"train\.bin: damaged"),
        ("held_out.jsonl", flip, r"held_out\.jsonl: damaged"),
        ("data.json", cut_short, r"data\.json: not valid JSON"),
    ],
)
def test_damage_is_found_and_named(
    folder: Path, name: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        shards.load(folder, is_thorough=True)


def test_a_missing_file_or_key_is_named(folder: Path) -> None:
    (folder / "train.bin").unlink()
    with pytest.raises(CheckpointError, match=r"train\.bin: no such file"):
        shards.load(folder)
    (folder / "data.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"data\.json: damaged"):
        shards.load(folder)
