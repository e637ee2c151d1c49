"""The tokenizer of a run: given, or learned from a sample of the training text."""

from pathlib import Path

from moestro.data.config import TokenizerConfig
from moestro.data.corpus import Document
from moestro.data.vocabulary import build_tokenizer
from moestro.text.tokenizer import Tokenizer


def test_a_given_tokenizer_is_loaded(
    tokenizer: Tokenizer, documents: tuple[Document, ...], tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    built = build_tokenizer(TokenizerConfig(path=str(tmp_path)), documents, seed=0)
    assert built.fingerprint == tokenizer.fingerprint


def test_a_learned_one_depends_on_seed_and_text_alone(documents: tuple[Document, ...]) -> None:
    config = TokenizerConfig(vocab_size=300, sample_bytes=3000)
    first = build_tokenizer(config, documents, seed=0)
    assert first.vocab_size == 300
    assert first.fingerprint == build_tokenizer(config, documents[::-1], seed=0).fingerprint
    assert first.fingerprint != build_tokenizer(config, documents, seed=1).fingerprint


def test_a_sample_may_end_inside_a_character() -> None:
    document = Document(text="\u00e9" * 100, name="a", domain="prose")
    config = TokenizerConfig(vocab_size=260, sample_bytes=51)
    assert build_tokenizer(config, [document], seed=0).vocab_size == 260
