"""A checkpoint folder to a ready engine: what a worker process runs first. Next: engine.py."""

from collections.abc import Callable, Collection
from pathlib import Path

import torch

from moestro.engine.config import EngineConfig
from moestro.engine.engine import Engine
from moestro.errors import ConfigError
from moestro.model.model import Transformer
from moestro.model.prepare import prepare
from moestro.ops.choose import chosen_kernels
from moestro.ops.machine import default_device, fastest_dtype
from moestro.text.grammar import GrammarFactory
from moestro.text.tokenizer import Tokenizer
from moestro.weights.load import load_model

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "checkpoint": None}


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
    if config.dtype != "auto" and config.dtype not in _DTYPES:
        raise ConfigError(
            f"dtype is {config.dtype!r}: choose auto, float32, bfloat16 or checkpoint"
        )

    def report_weights(share: float) -> None:
        report_progress("reading weights", 0.1 + 0.6 * share)

    model = _load_weights(folder, config.dtype, device, report_weights)
    report_progress("packing weights", 0.7)
    _pack(model)
    report_progress("reading the tokenizer", 0.8)
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_fits(model.config.vocab_size)
    report_progress("preparing the cache", 0.9)
    grammars = GrammarFactory(tokenizer, vocab_size=model.config.vocab_size, eos_ids=stop_ids)
    return Engine(model, config, grammars)


def _load_weights(
    folder: Path, wish: str, device: str, report: Callable[[float], None]
) -> Transformer:
    # The kernels multiply any kind of weight in float32: the checkpoint's own reads fewest bytes.
    fastest = None if _has_kernels(device) else fastest_dtype(device)
    return load_model(folder, fastest if wish == "auto" else _DTYPES[wish], device, report)


def _pack(model: Transformer) -> None:
    """Pack the weights where native kernels run."""
    if _has_kernels(model.embed_tokens.weight.device.type):
        is_half = model.compute_dtype == torch.bfloat16
        prepare(model, chosen_kernels().kernels, "bfloat16" if is_half else "float32")


def _has_kernels(device: str) -> bool:
    return device == "cpu" and chosen_kernels().is_native
