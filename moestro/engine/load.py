"""A checkpoint folder to a ready engine: what a worker process runs first. Next: engine.py."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from moestro.engine.config import EngineConfig, EngineDtype
from moestro.engine.engine import Engine
from moestro.errors import ConfigError
from moestro.model.model import Transformer
from moestro.ops.choose import chosen_kernels
from moestro.ops.machine import default_device, fastest_dtype
from moestro.ops.panels import WeightKind
from moestro.text.grammar import GrammarFactory
from moestro.text.tokenizer import Tokenizer
from moestro.weights.load import load_model
from moestro.weights.packed import load_packed

log = logging.getLogger(__name__)

_DTYPES: dict[EngineDtype, torch.dtype | None] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "checkpoint": None,
}
_KINDS: dict[EngineDtype, WeightKind | None] = {
    "auto": None, "checkpoint": None, "float32": "float32", "bfloat16": "bfloat16",
    "int8": "int8", "int4": "int4",
}  # fmt: skip


def load_engine(
    folder: Path,
    config: EngineConfig,
    stop_ids: Collection[int],
    report_progress: Callable[[str, float], None],
) -> Engine:
    """Load a Hugging Face folder; grammars may end at any of `stop_ids`.

    `report_progress` hears each stage and the fraction done.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = default_device()

    def report_weights(share: float) -> None:
        report_progress("reading weights", 0.1 + 0.7 * share)

    chosen = chosen_kernels()
    log.info("kernels: %s (%s)", chosen.kernels.name, chosen.reason)
    model = _load_weights(folder, config.dtype, device, report_weights)
    report_progress("reading the tokenizer", 0.8)
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_fits(model.config.vocab_size)
    report_progress("preparing the cache", 0.9)
    grammars = GrammarFactory(tokenizer, vocab_size=model.config.vocab_size, eos_ids=stop_ids)
    return Engine(model, config, grammars)


def _load_weights(
    folder: Path, wish: EngineDtype, device: str, report: Callable[[float], None]
) -> Transformer:
    if device == "cpu" and chosen_kernels().is_native:
        return load_packed(folder, chosen_kernels().kernels, _KINDS[wish], report)
    if wish not in ("auto", *_DTYPES):
        raise ConfigError(
            f"dtype is {wish!r}, which takes native kernels, and here run {device}'s own"
            f" ({chosen_kernels().reason}): choose auto, {', '.join(_DTYPES)}"
        )
    dtype = fastest_dtype(device) if wish == "auto" else _DTYPES[wish]
    return load_model(folder, dtype, device, report)
