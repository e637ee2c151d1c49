"""A run folder: made once from a configuration and its text, opened again whenever the run goes on.

The resolved configuration is written last, so that a folder that has one is complete.
Next: loop.py.
"""

import dataclasses
import fcntl
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moestro import files, settings
from moestro.data import baselines, shards
from moestro.data.corpus import read_corpus
from moestro.data.loader import Loader
from moestro.data.shards import Shards
from moestro.data.split import split
from moestro.data.vocabulary import build_tokenizer
from moestro.errors import ConfigError
from moestro.model.count import count_parameters
from moestro.ops.causal import MOST_TOKENS
from moestro.ops.choose import chosen_kernels
from moestro.ops.machine import default_device, fastest_dtype
from moestro.ops.memory import physical_bytes
from moestro.ops.native import WIDTH_MULTIPLE, NativeKernels
from moestro.ops.panels import PANEL
from moestro.text.tokenizer import Tokenizer
from moestro.train.config import RunConfig
from moestro.train.evaluate import TokenDocument
from moestro.train.metrics import EVENTS_FOLDER, METRICS_FILE, Observer
from moestro.weights.find import latest_checkpoint

log = logging.getLogger(__name__)

CONFIG_FILE = "config.toml"
# Weights, gradients and one moment in float32; AdamW keeps two.
_LEAST_BYTES_PER_PARAMETER = 12
# Settings that change no weight: a run may go on under others.
_FREE = ("train.checkpoint", "train.evaluate_every", "train.log_every")


@dataclass(frozen=True, kw_only=True)
class Run:
    """An open run folder."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    data: Shards

    def loader(self) -> Loader:
        """Return the run's batches: a pure function of the step."""
        train = self.config.train
        return Loader(
            self.data.tokens,
            batch_size=train.batch_size,
            seq_len=train.seq_len,
            num_extra=1 + self.config.model.num_nextn_predict_layers,
            seed=train.seed,
        )

    def held_out_sample(self, max_bytes: int) -> list[TokenDocument]:
        """Return the beginnings of held-out documents, all with an equal share of `max_bytes`."""
        share = max(1_000, max_bytes // len(self.data.held_out))
        chosen = sorted(self.data.held_out, key=lambda d: d.draw("sample", 0))[: max_bytes // share]
        texts = [document.text[:share] for document in chosen]
        ids = self.tokenizer.encode_batch(texts)
        return [TokenDocument(i, len(t.encode())) for i, t in zip(ids, texts, strict=True)]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder until the block ends.

    ConfigError if one trains there. A folder that is not there is made, and taken away again if
    nothing came to lie in it.
    """
    _check_no_file(folder)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)
        with suppress(OSError):
            for each in made:
                each.rmdir()


def _lock(handle: int, folder: Path) -> None:
    try:
        # The system lets go of it when the process ends, however it ends.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{folder}: another process is training there: stop it, or choose another --out"
        ) from error
    except OSError:
        log.warning("%s: its file system has no locks: start only one process there", folder)


def open_run(config: RunConfig, folder: Path, observers: Sequence[Observer] = ()) -> Run:
    """Open the run in `folder` if it is this configuration's, or make it there."""
    path = folder / CONFIG_FILE
    stored = settings.build(RunConfig, settings.load(path)) if path.exists() else None
    if stored is not None and (not _differences(stored, config) or _has_steps(folder)):
        config = _check_same(stored, config, folder)
    else:
        # A run of another configuration that never took a step: nothing is lost with it.
        _check_free(folder, (CONFIG_FILE, METRICS_FILE, EVENTS_FOLDER) if stored else ())
        _check_memory(config)
        _forget(folder)
        config = _make(config, folder, observers)
        files.write_atomic(path, settings.to_toml(config).encode())
    tokenizer = Tokenizer.load(folder / "tokenizer")
    # Damaged ids would be learned like any others.
    data = shards.load(folder / "data", is_thorough=True)
    return Run(folder=folder, config=config, tokenizer=tokenizer, data=data)


def load_run(folder: Path) -> Run:
    """Open an existing run folder under its own configuration."""
    config = settings.build(RunConfig, settings.load(folder / CONFIG_FILE))
    return open_run(config, folder)


def _make(config: RunConfig, folder: Path, observers: Sequence[Observer]) -> RunConfig:
    def say(text: str) -> None:
        for observer in observers:
            observer.on_stage(text)

    config = settle_machine(config)
    say("reading text")
    corpus = read_corpus(config.data)
    parts = split(corpus.documents, config.data.held_out, config.data.seed)
    stats = corpus.stats
    size = sum(stats.num_bytes.values()) / 1e6
    say(f"{len(corpus.documents)} documents, {size:.1f} MB; left out: {stats.describe_left_out()}")
    say("learning the tokenizer" if config.tokenizer.path is None else "loading the tokenizer")
    tokenizer = build_tokenizer(config.tokenizer, parts.training, config.data.seed)
    config = _adopt(config, tokenizer)
    say("measuring gzip, xz and an order-5 n-gram model on the held-out text")
    compared = baselines.measure(parts.training, parts.held_out)
    say("writing token ids")
    with files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A kill between these steps leaves parts without a configuration; they are made anew.
        shutil.rmtree(folder / "data", ignore_errors=True)
    tokenizer.save(folder / "tokenizer")
    shards.prepare(parts, tokenizer, config.data, folder / "data", stats, compared)
    return config


def settle_machine(config: RunConfig) -> RunConfig:
    """Return the configuration with what "auto" means here: the device, and the faster dtype."""
    train = config.train
    device = default_device() if train.device == "auto" else train.device
    _check_device(device)
    dtype = train.dtype
    if dtype == "auto":
        is_faster = fastest_dtype(device) is torch.bfloat16
        is_faster = is_faster or (device == "cpu" and _is_made_for_native_passes(config))
        dtype = "bfloat16" if is_faster else "float32"
    return dataclasses.replace(config, train=dataclasses.replace(train, device=device, dtype=dtype))


def _is_made_for_native_passes(config: RunConfig) -> bool:
    """Whether all of a step runs on our own vectorized passes, which take bfloat16.

    Where torch multiplies float32 faster, they take three quarters of its time and half the memory
    (docs/log.md, 2026-11-27).
    """
    kernels, model, seq_len = chosen_kernels().kernels, config.model, config.train.seq_len
    if not (isinstance(kernels, NativeKernels) and kernels.is_vectorized):
        return False
    widths = [model.hidden_size, model.vocab_size, model.moe_intermediate_size, seq_len]
    widths += [model.intermediate_size, model.qk_head_dim, model.v_head_dim]
    narrow = [model.q_lora_rank or 0, model.kv_lora_rank, model.qk_nope_head_dim]
    are_whole = not any(width % WIDTH_MULTIPLE for width in widths)
    are_whole = are_whole and not any(width % PANEL for width in narrow)
    return are_whole and max(seq_len, model.max_position_embeddings) <= MOST_TOKENS


def _check_device(name: str) -> None:
    try:
        kind = torch.zeros(1, device=name).device.type
    except (RuntimeError, AssertionError):
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(
            f"train.device is {name!r}, which cannot be used here: choose auto, cpu or cuda"
        )


def _adopt(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Give the model its tokenizer's ends of text, once it is sure to have room for its ids."""
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer has"
            f" {tokenizer.vocab_size} ids: set model.vocab_size to at least that"
        )
    model = dataclasses.replace(
        config.model, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id
    )
    return dataclasses.replace(config, model=model)


def _check_memory(config: RunConfig) -> None:
    """Refuse a model that cannot lie in this machine's memory with gradients and moments."""
    num_parameters = count_parameters(config.model).total
    needed, memory = num_parameters * _LEAST_BYTES_PER_PARAMETER, physical_bytes()
    if config.train.device in ("auto", "cpu") and default_device() == "cpu" and needed > memory:
        raise ConfigError(
            f"model: {num_parameters / 1e9:.3g} G parameters take {needed / 1e9:.3g} GB to train,"
            f" and this machine has {memory / 1e9:.3g}: choose a smaller preset"
        )


def _forget(folder: Path) -> None:
    """Take a run's own files away, its configuration first: without that it is none."""
    with files.storage_errors(folder):
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        (folder / METRICS_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder / EVENTS_FOLDER, ignore_errors=True)


def _check_no_file(folder: Path) -> None:
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file: choose another --out")


def _check_free(folder: Path, own: Collection[str]) -> None:
    _check_no_file(folder)
    left_over = {"data", "tokenizer", ".data.partial", *own}
    strangers = [p.name for p in folder.glob("*") if p.name not in left_over]
    if strangers:
        raise ConfigError(f"{folder}: holds {strangers[0]} but no run: choose another --out")


def _has_steps(folder: Path) -> bool:
    """Whether a run has steps behind it: saved ones, or those of a process under way."""
    path = folder / METRICS_FILE
    return latest_checkpoint(folder) is not None or (path.exists() and path.stat().st_size > 0)


def _differences(stored: RunConfig, wanted: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return the settings, there and here, that a run cannot go on under."""
    old, new = _flat(settings.to_tables(stored)), _flat(settings.to_tables(wanted))
    return [
        (key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and new.get(key) != "auto"
        and not (key.startswith("model.") and key.endswith("token_id"))
        and not key.startswith(_FREE)
    ]


def _check_same(stored: RunConfig, wanted: RunConfig, folder: Path) -> RunConfig:
    """Return the configuration to go on with: the stored one with the wanted free settings."""
    for key, old, new in _differences(stored, wanted):
        raise ConfigError(
            f"{folder}: holds a run of another configuration: {key} is {old} there and"
            f" {new} here: choose another --out"
        )
    train = dataclasses.replace(
        stored.train,
        checkpoint=wanted.train.checkpoint,
        evaluate_every=wanted.train.evaluate_every,
        log_every=wanted.train.log_every,
    )
    return dataclasses.replace(stored, train=train)


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
