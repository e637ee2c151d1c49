"""Tokenizers of every family, built here: none needs a file from elsewhere."""

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer

SAMPLE = (
    "def add(first, second):\n    return first + second\n\n\n"
    "class Point:\n    def __init__(self, x=0, y=0):\n        self.x = x\n        self.y = y\n",
    "The library keeps every document that it reads, and counts those that it leaves out.\n",
) * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return learn(SAMPLE, vocab_size=320)


@pytest.fixture(scope="session")
def fallback_tokenizer() -> Tokenizer:
    """Return one of Llama's kind: a space before every text, bytes where there is no token."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", "a", "b", "ab", "\u2581ab"]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [("a", "b"), ("\u2581", "ab")]
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(inner.to_str())


@pytest.fixture(scope="session")
def prefix_tokenizer() -> Tokenizer:
    """Return one with a Metaspace decoder, as newer conversions of Llama's tokenizers have."""
    words = ["<s>", "</s>", "\u2581", "a", "b", "\u2581a"]
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u2581", "a")]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(inner.to_str())
