"""What rounding a model's weights costs: its loss on the same text, before and after.

Knows checkpoints and texts, not formats. Next: language_model.py.
"""

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moestro.data import shards
from moestro.data.config import DataConfig
from moestro.data.corpus import read_corpus
from moestro.lm import held_out
from moestro.lm.language_model import load
from moestro.model.config import ModelConfig
from moestro.model.count import count_parameters
from moestro.ops.memory import physical_bytes

# A hundred seconds of a model of 2 G parameters on two cores, a few of the demo's.
_MAX_BYTES = 100_000
_BYTES_PER_FLOAT = 4


def sample_text(model: Path, paths: Sequence[Path]) -> tuple[str, list[str]]:
    """Return the given text, or else a sample of what a run held out, or of Python's library.

    The first value says which.
    """
    if paths:
        corpus = read_corpus(DataConfig(paths=tuple(map(str, paths)), min_bytes=1))
        name = ", ".join(map(str, paths))
        return name, [document.text for document in corpus.documents]
    if (model / "config.toml").is_file() and (model / "data").is_dir():
        chosen = held_out.choose(shards.load(model / "data").held_out, _MAX_BYTES)
        return "held-out text of the run", [document.text for document in chosen.documents]
    corpus = read_corpus(DataConfig(max_document_bytes=_MAX_BYTES // 10, max_bytes=_MAX_BYTES))
    return "this Python's library", [document.text for document in corpus.documents]


def fits_in_memory(config: ModelConfig) -> bool:
    """Say whether this machine holds the model in float32, in which its loss is measured."""
    return _BYTES_PER_FLOAT * count_parameters(config).total < 0.8 * physical_bytes()


def measure(before: Path, after: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Score two checkpoints of one model, one after the other, each by what would serve it.

    Codes meet inputs that the kernels round to int8; without native kernels they are floats again.
    """
    found = {}
    for key, path in (("before", before), ("after", after)):
        result = load(path).score(texts)
        found[key] = {
            "nats_per_token": result.nats_per_token,
            "perplexity": math.exp(result.nats_per_token),
        }
        tokens = result.tokens
        # A model hangs in cycles; the next one may need its memory.
        gc.collect()
    rise = found["after"]["perplexity"] / found["before"]["perplexity"] - 1
    return found | {"tokens": tokens, "perplexity_rise": rise}
