"""The text of a run as token ids on disk, so that a run that goes on never reads its sources again.

`train.bin` is the training documents, shuffled, as little-endian ids; `held_out.jsonl` is the
others, as text; `data.json` says what both are. Next: loader.py, baselines.py.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro import files
from moestro.data import fim
from moestro.data.config import DataConfig
from moestro.data.corpus import CorpusStats, Document
from moestro.data.split import Split
from moestro.errors import CheckpointError, ConfigError
from moestro.text.tokenizer import Tokenizer

_TRAIN, _HELD_OUT, _ABOUT = "train.bin", "held_out.jsonl", "data.json"
_BATCH_DOCUMENTS = 128


@dataclass(frozen=True, kw_only=True)
class Shards:
    """What `prepare` wrote: training ids, mapped and not copied; held-out documents; counts."""

    tokens: NDArray[np.unsignedinteger[Any]]
    held_out: tuple[Document, ...]
    about: dict[str, Any]


def prepare(
    parts: Split,
    tokenizer: Tokenizer,
    config: DataConfig,
    folder: Path,
    stats: CorpusStats | None = None,
    baselines: Mapping[str, float] | None = None,
) -> None:
    """Write training ids and held-out text into `folder`, which appears whole or not at all.

    `folder` must not exist. `stats` and `baselines` are kept in data.json for the run's report.
    """
    if config.fim_rate and tokenizer.fim is None:
        raise ConfigError(
            f"fim_rate is {config.fim_rate}, but the tokenizer has no fill-in-the-middle tokens:"
            " set fim_rate to 0 or leave tokenizer.path out"
        )
    with files.folder_atomic(folder) as draft:
        dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
        counts = _write_training(draft / _TRAIN, parts.training, tokenizer, config, dtype)
        held_out = _write_held_out(draft / _HELD_OUT, parts.held_out)
        about = {
            "dtype": dtype,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "fingerprint": fingerprint(config, tokenizer),
            "training": counts,
            "held_out": held_out | {"num_dropped": len(parts.dropped)},
            "corpus": dataclasses.asdict(stats) if stats else None,
            "baselines": dict(baselines) if baselines else None,
        }
        files.write_json(draft / _ABOUT, about)


def load(folder: Path, *, is_thorough: bool = False) -> Shards:
    """Map the ids in `folder`; `is_thorough` also reads them all and compares their checksum."""
    about = files.read_json(folder / _ABOUT)
    try:
        dtype, training, held_out = np.dtype(about["dtype"]), about["training"], about["held_out"]
        num_tokens, sha256 = int(training["num_tokens"]), held_out["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _ABOUT}: damaged ({error!r}): remove {folder}") from error
    path = folder / _TRAIN
    try:
        size, lines = path.stat().st_size, (folder / _HELD_OUT).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file: remove {folder}") from error
    if size != num_tokens * dtype.itemsize:
        wanted = num_tokens * dtype.itemsize
        raise CheckpointError(f"{path}: {size} bytes, expected {wanted}: remove {folder}")
    if hashlib.sha256(lines).hexdigest() != sha256:
        raise CheckpointError(f"{folder / _HELD_OUT}: damaged: remove {folder}")
    if is_thorough and files.hash_file(path) != training["sha256"]:
        raise CheckpointError(f"{path}: damaged: remove {folder}")
    documents = tuple(Document(**json.loads(line)) for line in lines.splitlines())
    tokens = np.memmap(path, dtype=dtype, mode="r")
    return Shards(tokens=tokens, held_out=documents, about=about)


def fingerprint(config: DataConfig, tokenizer: Tokenizer) -> str:
    """Hash of what decides the ids, to tell whether a folder belongs to a configuration."""
    text = json.dumps([dataclasses.asdict(config), tokenizer.fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_training(
    path: Path, documents: Sequence[Document], tokenizer: Tokenizer, config: DataConfig, dtype: str
) -> dict[str, Any]:
    order = np.random.default_rng(config.seed).permutation(len(documents)).tolist()
    shuffled = [documents[index] for index in order]
    by_domain: dict[str, dict[str, int]] = {}
    digest, num_tokens, num_fim = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        for document, examples in _encode(shuffled, tokenizer, config):
            ids = _join(examples, tokenizer, is_first=num_tokens == 0)
            data = np.array(ids, dtype=dtype).tobytes()
            file.write(data)
            digest.update(data)
            num_tokens += len(ids)
            num_fim += is_fim(document, config)
            _count(by_domain, document, num_tokens=len(ids))
    return {
        "num_documents": len(documents),
        "num_tokens": num_tokens,
        "num_fim_documents": num_fim,
        "sha256": digest.hexdigest(),
        "domains": by_domain,
    }


def is_fim(document: Document, config: DataConfig) -> bool:
    """Tell whether a training document is told as fill-in-the-middle examples."""
    return document.draw("is_fim", config.seed) < config.fim_rate


def _encode(
    documents: Sequence[Document], tokenizer: Tokenizer, config: DataConfig
) -> Iterator[tuple[Document, list[list[int]]]]:
    for start in range(0, len(documents), _BATCH_DOCUMENTS):
        batch = documents[start : start + _BATCH_DOCUMENTS]
        parts = [_parts(document, config) for document in batch]
        encoded = iter(tokenizer.encode_batch(list(chain.from_iterable(parts))))
        for document, texts in zip(batch, parts, strict=True):
            ids = list(islice(encoded, len(texts)))
            if tokenizer.fim is not None and is_fim(document, config):
                ids = fim.arrange(ids, tokenizer.fim)
            yield document, ids


def _parts(document: Document, config: DataConfig) -> list[str]:
    if not is_fim(document, config):
        return [document.text]
    return list(chain.from_iterable(fim.cut(document, config.fim_bytes, config.seed)))


def _join(examples: list[list[int]], tokenizer: Tokenizer, *, is_first: bool) -> list[int]:
    # Where one token both begins and ends a text, the end of one is the beginning of the next.
    is_shared = tokenizer.bos_id == tokenizer.eos_id
    begin = [] if is_shared else [tokenizer.bos_id]
    joined = [tokenizer.eos_id] if is_shared and is_first else []
    for ids in examples:
        joined += [*begin, *ids, tokenizer.eos_id]
    return joined


def _write_held_out(path: Path, documents: Sequence[Document]) -> dict[str, Any]:
    by_domain: dict[str, dict[str, int]] = {}
    lines = []
    for document in documents:
        lines.append(json.dumps(dataclasses.asdict(document)) + "\n")
        _count(by_domain, document)
    data = "".join(lines).encode()
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return {"num_documents": len(documents), "sha256": sha256, "domains": by_domain}


def _count(by_domain: dict[str, dict[str, int]], document: Document, **more: int) -> None:
    counts = by_domain.setdefault(document.domain, {})
    added = {"num_documents": 1, "num_bytes": len(document.text.encode()), **more}
    for name, number in added.items():
        counts[name] = counts.get(name, 0) + number
