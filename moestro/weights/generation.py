"""What a checkpoint says of answers: which tokens end them, and how its makers would sample.

Stands in config.json and generation_config.json; a GGUF file has its tokenizer's end of a text
alone. Loads no torch. Next: load.py.
"""

from pathlib import Path
from typing import Any

from moestro import files
from moestro.api.sampling import Sampling, SamplingWish
from moestro.errors import CheckpointError, ConfigError

_CONFIG_FILE = "config.json"
_GENERATION_FILE = "generation_config.json"
# What vLLM and SGLang read of it; they pass over do_sample, which old base models have at false.
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_stop_ids(folder: Path, eos_id: int, vocab_size: int) -> frozenset[int]:
    """Return the tokens that end an answer: `eos_id`, and those that either file names."""
    tables = (_read(folder / name) for name in (_CONFIG_FILE, _GENERATION_FILE))
    named = {eos_id, *(token for table in tables for token in _end_ids(table))}
    return frozenset(token for token in named if 0 <= token < vocab_size)


def read_sampling(folder: Path) -> Sampling:
    """Return what the makers recommend; CheckpointError if it cannot be followed."""
    path = folder / _GENERATION_FILE
    table = _read(path)
    given = {name: table[name] for name in RECOMMENDED if table.get(name) is not None}
    for name, value in given.items():
        if type(value) not in ((int,) if name == "top_k" else (int, float)):
            raise CheckpointError(f"{path}: {name} is {value!r:.80}: it must be a number")
    if "top_k" in given:
        given["top_k"] = max(0, given["top_k"])
    try:
        return SamplingWish(**given).fill(Sampling())
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}


def _end_ids(table: dict[str, Any]) -> list[int]:
    named = table.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return [token for token in ids if type(token) is int]
