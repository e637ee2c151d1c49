"""READ FIRST: a Hugging Face folder into a model: build on meta, fill piece by piece, prove exact.

Knows which tensors must be there and in which types they may come. Next: names.py, store.py.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moestro import files, settings
from moestro.errors import CheckpointError, ConfigError
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.model import Transformer
from moestro.ops.pack import Block, dequantize_blocks, scale_shape
from moestro.weights.header import shown
from moestro.weights.names import Piece, aliases, mtp_pieces, pieces
from moestro.weights.store import CONFIG_FILE, TORCH_DTYPES, TensorFolder

log = logging.getLogger(__name__)

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_SCALE = "_scale_inv"
_FP8 = "F8_E4M3"
_PLAIN = ("F32", "BF16", "F16")
# Tensors between two reports of progress.
_PROGRESS_EVERY = 16
# Tables that some programs saved with the weights; they follow from the configuration.
_DERIVED = ".rotary_emb.inv_freq"


def load_config(folder: Path) -> ModelConfig:
    """Read the shape of the model in a Hugging Face folder."""
    return _build_config(folder, _read_raw(folder))


def load_model(
    folder: Path,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    on_progress: Callable[[float], None] | None = None,
) -> Transformer:
    """Load a Hugging Face folder, ready to infer; `dtype` None keeps the checkpoint's own.

    Weights and arithmetic are in `dtype`, the gates' selection bias in float32. Reads tensor by
    tensor, so that memory holds the model once; `on_progress` hears the share that is read.
    """
    raw = _read_raw(folder)
    block = _read_block(folder, raw)
    source = TensorFolder(folder)
    config = _without_absent_mtp(_build_config(folder, raw), source)
    with torch.device("meta"):
        model = Transformer(config)
    table = pieces(config)
    _prove_exact(source, table, model, block)
    model.compute_dtype = _own_dtype(source) if dtype is None else dtype
    state = _allocate(model, model.compute_dtype, torch.device(device))
    for number, piece in enumerate(table):
        state[piece.key][piece.index].copy_(_read_weight(source, piece.hf_name, block))
        if on_progress is not None and number % _PROGRESS_EVERY == 0:
            on_progress(number / len(table))
    model.load_state_dict(state, assign=True)
    model.reset_tables()
    return model.eval()


def _read_raw(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder: give a folder with {CONFIG_FILE}")
    with files.storage_errors(folder / CONFIG_FILE):
        return files.read_json(folder / CONFIG_FILE)


def _build_config(folder: Path, raw: dict[str, Any]) -> ModelConfig:
    path = folder / CONFIG_FILE
    try:
        config = ModelConfig.from_hf(raw)
        # JSON holds any type under any key; building it as settings refuses wrong ones.
        return settings.build(ModelConfig, settings.to_tables(config))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: a value has the wrong type ({error}): restore the file"
        ) from error


def _read_block(folder: Path, raw: dict[str, Any]) -> Block | None:
    """Return the size of the FP8 blocks, or None for a checkpoint without them."""
    table = raw.get("quantization_config")
    if table is None:
        return None
    path = folder / CONFIG_FILE
    if not isinstance(table, dict) or table.get("quant_method") != "fp8":
        method = table.get("quant_method") if isinstance(table, dict) else table
        raise CheckpointError(
            f"{path}: quant_method is {method!r}: Moestro reads fp8: give unquantized weights"
        )
    match table.get("weight_block_size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case size:
            raise CheckpointError(
                f"{path}: weight_block_size is {size!r}: expected two numbers, like [128, 128]"
            )


def _without_absent_mtp(config: ModelConfig, source: TensorFolder) -> ModelConfig:
    """Drop MTP modules that the folder leaves out altogether, as transformers writes them."""
    optional = {piece.hf_name for piece in mtp_pieces(config) + aliases(config)}
    if not optional or not optional.isdisjoint(source.names()):
        return config
    dropped = config.num_nextn_predict_layers
    log.warning(
        "%s: holds no weights of its %d MTP modules: loaded without", source.folder, dropped
    )
    rows = config.budget.thresholds
    budget = dataclasses.replace(config.budget, thresholds=rows[: len(rows) - dropped])
    return dataclasses.replace(
        config, num_nextn_predict_layers=0, budget=budget if budget.thresholds else BudgetConfig()
    )


def _prove_exact(
    source: TensorFolder, table: list[Piece], model: Transformer, block: Block | None
) -> None:
    """Prove that the folder's tensors are those of the model: none missing, none left over."""
    state = model.state_dict()
    assert {piece.key for piece in table} == set(state)
    missing = [piece.hf_name for piece in table if piece.hf_name not in source]
    if missing:
        raise CheckpointError(
            f"{source.folder}: lacks {_few(missing)}: copy the checkpoint again,"
            f" or give the {CONFIG_FILE} that belongs to it"
        )
    is_tied = model.config.tie_word_embeddings and _HEAD in source
    tied = [Piece(_HEAD, "embed_tokens.weight")] if is_tied else []
    copies = [piece for piece in aliases(model.config) if piece.hf_name in source]
    expected = set()
    for piece in table + tied + copies:
        _check_entry(source, piece.hf_name, tuple(state[piece.key][piece.index].shape), block)
        is_fp8 = source.entry(piece.hf_name).dtype == _FP8
        expected |= {piece.hf_name, piece.hf_name + _SCALE} if is_fp8 else {piece.hf_name}
    if is_tied:
        _check_tied(source)
    surplus = [name for name in source.names() if name not in expected and _matters(source, name)]
    if surplus:
        raise CheckpointError(
            f"{source.folder}: holds {_few(surplus)}, for which {CONFIG_FILE} has no place:"
            f" give the {CONFIG_FILE} that belongs to the weights"
        )


def _check_entry(
    source: TensorFolder, name: str, shape: tuple[int, ...], block: Block | None
) -> None:
    entry, path = source.entry(name), source.path(name)
    if entry.shape != shape:
        raise CheckpointError(
            f"{path}: {name} has shape {list(entry.shape)}, expected {list(shape)}:"
            f" give the {CONFIG_FILE} that belongs to the weights"
        )
    if entry.dtype in _PLAIN:
        return
    if entry.dtype != _FP8 or block is None or len(shape) != 2:
        raise CheckpointError(
            f"{path}: {name} is of type {entry.dtype}, which {CONFIG_FILE} does not announce:"
            f" expected {', '.join(_PLAIN)}, or FP8 matrices with a quantization_config"
        )
    scale = name + _SCALE
    if scale not in source:
        raise CheckpointError(f"{path}: {name} is FP8, but {scale} is missing: copy the file again")
    _check_entry(source, scale, scale_shape(shape, block), None)


def _check_tied(source: TensorFolder) -> None:
    embedding, head = (source.read(name).view(torch.uint8) for name in (_EMBEDDING, _HEAD))
    if not torch.equal(embedding, head):
        raise CheckpointError(
            f"{source.path(_HEAD)}: {_HEAD} is not the embedding, but {CONFIG_FILE} ties the two:"
            " set tie_word_embeddings to false there"
        )


def _matters(source: TensorFolder, name: str) -> bool:
    # transformers writes shared experts of zero elements where a model has none.
    return 0 not in source.entry(name).shape and not name.endswith(_DERIVED)


def _few(names: list[str]) -> str:
    head = ", ".join(shown(name) for name in names[:3])
    return head if len(names) <= 3 else f"{len(names)} tensors ({head}, ...)"


def _own_dtype(source: TensorFolder) -> torch.dtype:
    # DeepSeek never quantizes the embedding: its type is the one that the model was kept in.
    dtype = TORCH_DTYPES[source.entry(_EMBEDDING).dtype]
    return dtype if dtype.itemsize > 1 else torch.bfloat16


def _allocate(model: Transformer, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    # The gates' bias is a buffer and stays float32: its steps are finer than bfloat16 resolves.
    weights = {name for name, _ in model.named_parameters()}
    return {
        key: torch.empty(meta.shape, dtype=dtype if key in weights else meta.dtype, device=device)
        for key, meta in model.state_dict().items()
    }


def _read_weight(source: TensorFolder, name: str, block: Block | None) -> Tensor:
    tensor = source.read(name)
    if source.entry(name).dtype != _FP8:
        return tensor
    assert block is not None
    return dequantize_blocks(tensor, source.read(name + _SCALE), block)
