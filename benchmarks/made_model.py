"""A model folder with random weights and a real vocabulary, for benchmarks of serving."""

from pathlib import Path

import torch

from moestro import files
from moestro.data.sources import Found
from moestro.data.stdlib import read_stdlib
from moestro.model.config import ModelConfig
from moestro.model.initialize import initialize
from moestro.model.model import Transformer
from moestro.model.presets import preset_tables
from moestro.settings import build
from moestro.text.learn import learn
from moestro.weights.export import save_model

_SAMPLE_BYTES = 3_000_000
# The least that makes a conversation one text.
_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def make_model(folder: Path, shape: str, seed: int = 0) -> None:
    """Write a Hugging Face folder in a preset's shape, float32."""
    texts, size = [], 0
    for item in read_stdlib():
        if isinstance(item, Found) and size < _SAMPLE_BYTES and item.data.isascii():
            texts.append(item.data.decode())
            size += len(item.data)
    config = build(ModelConfig, preset_tables(shape))
    tokenizer = learn(texts, config.vocab_size)
    model = Transformer(config)
    initialize(model, seed)
    folder.mkdir(parents=True)
    save_model(model, folder, dtype=torch.float32)
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    files.write_json(path, files.read_json(path) | {"chat_template": _TEMPLATE})
