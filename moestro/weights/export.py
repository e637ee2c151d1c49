"""A model into a Hugging Face folder, as DeepSeek publishes its own: plain or in FP8 blocks.

Writes into a folder that the caller made and makes appear at once. Next: store.py.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moestro import files
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.ops.pack import BLOCK, quantize_blocks, scale_shape
from moestro.weights.names import Piece, aliases, pieces
from moestro.weights.store import CONFIG_FILE, Outgoing, Together, save_tensors

MAX_SHARD_BYTES = 5_000_000_000
_COMPANIONS = ("generation_config.json", "chat_template.jinja", "chat_template.json")
_QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": list(BLOCK),
}


def save_model(
    model: Transformer,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    fp8: bool = False,
) -> None:
    """Write configuration and weights into an existing folder.

    `dtype` None keeps each tensor's own; buffers (the gates' selection bias) always keep theirs.
    `fp8` stores the matrices that DeepSeek does in blocks of 128 x 128 with float32 scales.
    """
    state = model.state_dict()
    table = pieces(model.config)
    assert {piece.key for piece in table} == set(state)
    targets = {key: value.dtype for key, value in state.items()}
    if dtype is not None:
        targets |= {name: dtype for name, _ in model.named_parameters()}
    tensors: list[Outgoing] = []
    for piece in table + aliases(model.config):
        tensors += _outgoing(piece, state[piece.key], targets[piece.key], fp8)
    save_tensors(folder, tensors, max_shard_bytes)
    values = config_json(model.config, targets["embed_tokens.weight"])
    if fp8:
        values["quantization_config"] = _QUANTIZATION
    files.write_json(folder / CONFIG_FILE, values)
    write_generation(model.config, folder)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what a checkpoint says beside its weights: how to draw tokens and to write a chat."""
    for name in _COMPANIONS:
        if (source / name).is_file():
            with files.storage_errors(source / name):
                shutil.copyfile(source / name, folder / name)


def config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return what `config.json` says of plain weights."""
    return config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}


def write_generation(config: ModelConfig, folder: Path) -> None:
    """Write `generation_config.json` unless the folder has one."""
    path = folder / "generation_config.json"
    if not path.exists():
        ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
        files.write_json(path, {key: value for key, value in ids.items() if value is not None})


def _outgoing(piece: Piece, value: Tensor, dtype: torch.dtype, fp8: bool) -> list[Outgoing]:
    """Describe one tensor, or a float8 matrix and its scales, which are made together."""
    part = piece.part(value)
    name, shape = piece.hf_name, tuple(part.shape)
    if not (fp8 and piece.is_quantizable):
        return [Outgoing(name, dtype, shape, lambda: part)]
    blocks = Together(lambda: quantize_blocks(part))
    return [
        Outgoing(name, torch.float8_e4m3fn, shape, lambda: blocks.take(0)),
        Outgoing(f"{name}_scale_inv", torch.float32, scale_shape(shape), lambda: blocks.take(1)),
    ]
