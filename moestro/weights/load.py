"""READ FIRST: a checkpoint into a model: build on meta, fill piece by piece, prove exact.

Knows which tensors must be there, not how they are stored. Next: names.py, stored.py.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moestro import files
from moestro.errors import CheckpointError
from moestro.files import shown
from moestro.gguf_file import GgufFile, is_gguf
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.model import Transformer
from moestro.weights.gguf_config import read_config
from moestro.weights.gguf_weights import GgufWeights
from moestro.weights.hf_config import build_config
from moestro.weights.names import EMBEDDING, HEAD, K_B, Piece, aliases, mtp_pieces, pieces
from moestro.weights.store import CONFIG_FILE
from moestro.weights.stored import FolderWeights, Weights

log = logging.getLogger(__name__)

# Tensors between two reports of progress.
_PROGRESS_EVERY = 16


def load_config(folder: Path) -> ModelConfig:
    """Read the shape of the model in a Hugging Face folder or a GGUF file."""
    if is_gguf(folder):
        return read_config(GgufFile(folder))
    return build_config(folder / CONFIG_FILE, _read_raw(folder))


def open_weights(folder: Path) -> tuple[ModelConfig, Weights]:
    """Open a Hugging Face folder or a GGUF file: its shape, and its weights, not yet read."""
    if is_gguf(folder):
        return _open_file(GgufFile(folder))
    raw = _read_raw(folder)
    weights = FolderWeights(folder, raw.get("quantization_config"))
    return _without_absent_mtp(build_config(folder / CONFIG_FILE, raw), weights), weights


def _open_file(file: GgufFile) -> tuple[ModelConfig, Weights]:
    config = read_config(file)
    weights = GgufWeights(file, config)
    is_tied = HEAD not in weights.names()
    return dataclasses.replace(config, tie_word_embeddings=is_tied), weights


def find_pieces(config: ModelConfig, weights: Weights) -> list[Piece]:
    """List the tensors that fill a model, in the layout of `kv_b_proj` that a checkpoint has."""
    return pieces(config, is_absorbed=any(name.endswith(K_B) for name in weights.names()))


def build_empty(config: ModelConfig, weights: Weights) -> Transformer:
    """Build a model without numbers, to learn the shapes of its weights."""
    try:
        with torch.device("meta"):
            return Transformer(config)
    except RuntimeError as error:
        raise CheckpointError(
            f"{weights.path}: no model has such a shape ({shown(str(error))}): give the"
            " configuration that belongs to the weights"
        ) from error


def load_model(
    folder: Path,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    on_progress: Callable[[float], None] | None = None,
) -> Transformer:
    """Load a Hugging Face folder or a GGUF file, ready to infer.

    `dtype` None keeps the checkpoint's own. Weights and arithmetic are in `dtype`, the gates'
    selection bias in float32. Reads tensor by tensor, so that memory holds the model once;
    `on_progress` hears the share that is read.
    """
    config, weights = open_weights(folder)
    model = build_empty(config, weights)
    table = find_pieces(config, weights)
    prove_exact(weights, table, model)
    model.compute_dtype = own_dtype(weights, config) if dtype is None else dtype
    state = _allocate(model, model.compute_dtype, torch.device(device))
    for number, piece in enumerate(table):
        _fill(state[piece.key], piece, weights)
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


def _without_absent_mtp(config: ModelConfig, weights: Weights) -> ModelConfig:
    """Drop MTP modules that the folder leaves out altogether, as transformers writes them."""
    optional = {piece.hf_name for piece in mtp_pieces(config) + aliases(config)}
    if not optional or not optional.isdisjoint(weights.names()):
        return config
    dropped = config.num_nextn_predict_layers
    log.warning("%s: holds no weights of its %d MTP modules: loaded without", weights.path, dropped)
    rows = config.budget.thresholds
    budget = dataclasses.replace(config.budget, thresholds=rows[: len(rows) - dropped])
    return dataclasses.replace(
        config, num_nextn_predict_layers=0, budget=budget if budget.thresholds else BudgetConfig()
    )


def prove_exact(weights: Weights, table: list[Piece], model: Transformer) -> None:
    """Prove that a checkpoint's tensors are those of the model: none missing, none left over."""
    state = model.state_dict()
    assert {piece.key for piece in table} == set(state)
    names = set(weights.names())
    missing = [piece.hf_name for piece in table if piece.hf_name not in names]
    if missing:
        raise CheckpointError(
            f"{weights.path}: lacks {_few(missing)}: copy the checkpoint again,"
            f" or give the {CONFIG_FILE} that belongs to it"
        )
    is_tied = model.config.tie_word_embeddings and HEAD in names
    tied = [Piece(HEAD, "embed_tokens.weight")] if is_tied else []
    copies = [piece for piece in aliases(model.config) if piece.hf_name in names]
    for piece in table + tied + copies:
        weights.stored(piece.hf_name, piece.shape(state[piece.key]))
    if is_tied:
        _check_tied(weights, tuple(state["embed_tokens.weight"].shape))
    expected = {piece.hf_name for piece in table + tied + copies}
    surplus = [name for name in weights.names() if name not in expected]
    if surplus:
        raise CheckpointError(
            f"{weights.path}: holds {_few(surplus)}, for which {CONFIG_FILE} has no place:"
            f" give the {CONFIG_FILE} that belongs to the weights"
        )


def _check_tied(weights: Weights, shape: tuple[int, ...]) -> None:
    embedding, head = (weights.stored(name, shape).read() for name in (EMBEDDING, HEAD))
    if embedding.dtype != head.dtype or not torch.equal(_bits(embedding), _bits(head)):
        raise CheckpointError(
            f"{weights.file(HEAD)}: {HEAD} is not the embedding, but {CONFIG_FILE} ties the two:"
            " set tie_word_embeddings to false there"
        )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


def _few(names: list[str]) -> str:
    head = ", ".join(shown(name) for name in names[:3])
    return head if len(names) <= 3 else f"{len(names)} tensors ({head}, ...)"


def own_dtype(weights: Weights, config: ModelConfig) -> torch.dtype:
    """Return the type of number that a checkpoint was kept in."""
    # DeepSeek never quantizes the embedding, nor do we; others may.
    embedding = weights.stored(EMBEDDING, (config.vocab_size, config.hidden_size))
    return embedding.dtype if embedding.kind == "plain" else torch.bfloat16


def _allocate(model: Transformer, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    # The gates' bias is a buffer and stays float32: its steps are finer than bfloat16 resolves.
    weights = {name for name, _ in model.named_parameters()}
    return {
        key: torch.empty(meta.shape, dtype=dtype if key in weights else meta.dtype, device=device)
        for key, meta in model.state_dict().items()
    }


def _fill(value: Tensor, piece: Piece, weights: Weights) -> None:
    part = piece.part(value)
    part.copy_(weights.stored(piece.hf_name, piece.shape(value)).read().view(part.shape))
