"""The tokenizer of a run: the one its owner names, or one learned from the training text.

Knows nothing of models. Next: shards.py.
"""

from collections.abc import Iterator, Sequence

from moestro.data.config import TokenizerConfig
from moestro.data.corpus import Document
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer


def build_tokenizer(config: TokenizerConfig, training: Sequence[Document], seed: int) -> Tokenizer:
    """Load the tokenizer at `config.path`, or learn one from a sample of the training documents."""
    if config.path is not None:
        return Tokenizer.load(config.path)
    return learn(_sample(training, config.sample_bytes, seed), config.vocab_size)


def _sample(documents: Sequence[Document], num_bytes: int, seed: int) -> Iterator[str]:
    # In the order of their draws, so that a sample of any size has every domain's share.
    for document in sorted(documents, key=lambda document: document.draw("sample", seed)):
        if num_bytes <= 0:
            return
        data = document.text.encode()[:num_bytes]
        num_bytes -= len(data)
        yield data.decode(errors="ignore")
