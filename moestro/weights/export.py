"""A model into a Hugging Face folder, as DeepSeek publishes its own: plain or in FP8 blocks.

Writes into a folder that the caller made and makes appear at once. Next: store.py.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moestro import files
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.ops.pack import BLOCK, quantize_blocks, scale_shape
from moestro.weights.names import Piece, aliases, pieces
from moestro.weights.store import CONFIG_FILE, Outgoing, save_tensors

_MAX_SHARD_BYTES = 5_000_000_000
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
    max_shard_bytes: int = _MAX_SHARD_BYTES,
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
    config = _config_json(model.config, targets["embed_tokens.weight"], fp8)
    files.write_json(folder / CONFIG_FILE, config)
    if not (folder / "generation_config.json").exists():
        files.write_json(folder / "generation_config.json", _generation_json(model.config))


def _outgoing(piece: Piece, value: Tensor, dtype: torch.dtype, fp8: bool) -> list[Outgoing]:
    """Describe one tensor, or a float8 matrix and its scales."""
    part = value[piece.index]
    name, shape = piece.hf_name, tuple(part.shape)
    if not (fp8 and piece.is_quantizable):
        return [Outgoing(name, dtype, shape, lambda: part)]
    return [
        Outgoing(name, torch.float8_e4m3fn, shape, lambda: quantize_blocks(part)[0]),
        Outgoing(
            f"{name}_scale_inv", torch.float32, scale_shape(shape), lambda: quantize_blocks(part)[1]
        ),
    ]


def _config_json(config: ModelConfig, dtype: torch.dtype, fp8: bool) -> dict[str, Any]:
    values = config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    return values | {"quantization_config": _QUANTIZATION} if fp8 else values


def _generation_json(config: ModelConfig) -> dict[str, Any]:
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    return {key: value for key, value in ids.items() if value is not None}
