"""A checkpoint into one with int8 or int4 codes and group scales, tensor by tensor.

docs/formats.md says what lies in the folder. Knows which weights are rounded to what, not how.
Next: stored.py, moestro/ops/quantize.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from moestro import files
from moestro.errors import CheckpointError
from moestro.model.config import ModelConfig
from moestro.ops.quantize import Kind, Quantized, codes_shape, quantize, scales_shape
from moestro.weights.export import MAX_SHARD_BYTES, config_json, write_generation
from moestro.weights.load import build_empty, find_pieces, own_dtype, prove_exact
from moestro.weights.names import HEAD, KV_B, Piece, pieces
from moestro.weights.store import CONFIG_FILE, Outgoing, Together, save_tensors
from moestro.weights.stored import SCALE, Weights, announce

Target = Kind | Literal["float32", "plain"]
_CODES = {"int8": torch.int8, "int4": torch.uint8}


class Reader:
    """Reads a checkpoint's weights in the absorbed layout, one at a time, proved beforehand."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        model = build_empty(config, weights)
        prove_exact(weights, find_pieces(config, weights), model)
        self.own_dtype = own_dtype(weights, config)
        self._state = model.state_dict()
        self._names = frozenset(weights.names())

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """Return the shape of a weight."""
        return piece.shape(self._state[piece.key])

    def read(self, piece: Piece) -> Tensor:
        """Return a weight's numbers; CheckpointError if one of them is not finite."""
        if piece.share is None or piece.hf_name in self._names:
            return self._read(piece.hf_name, self.shape(piece))
        whole = tuple(self._state[piece.key].shape)
        name = f"{piece.hf_name.rpartition('self_attn.')[0]}self_attn.{KV_B}"
        return piece.part(self._read(name, whole)).flatten(0, 1)

    def read_codes(self, piece: Piece, kind: Kind) -> Quantized:
        """Return a weight rounded; codes of that kind, where it has them already, as they are."""
        if piece.hf_name in self._names:
            stored = self.weights.stored(piece.hf_name, self.shape(piece))
            if stored.kind == kind and stored.read_codes is not None:
                return stored.read_codes()
        return quantize(self.read(piece), kind)

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        value = self.weights.stored(name, shape).read()
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{self.weights.path}: {name} holds a number that is not finite:"
                " it cannot be rounded: give sound weights"
            )
        return value


def save_quantized(
    reader: Reader,
    folder: Path,
    kind: Kind,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write configuration and weights into an existing folder; memory holds one weight.

    `dtype` is that of embeddings and norms; None keeps the checkpoint's own.
    """
    plain = dtype or reader.own_dtype
    table = pieces(reader.config, is_absorbed=True)
    tensors = [item for piece in table for item in _outgoing(reader, piece, kind, plain)]
    save_tensors(folder, tensors, max_shard_bytes)
    values = config_json(reader.config, plain) | {"quantization_config": announce(kind)}
    files.write_json(folder / CONFIG_FILE, values)
    write_generation(reader.config, folder)


def target(piece: Piece, kind: Kind) -> Target:
    """Return what a weight is rounded to in a checkpoint of some kind."""
    if piece.key.rpartition(".")[0].endswith(".gate"):
        return "float32"
    is_mtp = piece.key.startswith("mtp.")
    if piece.hf_name == HEAD or piece.key.endswith(".eh_proj.weight"):
        return "int8"
    if piece.is_quantizable:
        # Drafts are few bytes and worth nothing once they miss.
        return "int8" if is_mtp else kind
    return "plain"


def _outgoing(reader: Reader, piece: Piece, kind: Kind, plain: torch.dtype) -> Iterator[Outgoing]:
    """Describe one weight: as numbers, or as codes and scales that are made together."""
    form, name, shape = target(piece, kind), piece.hf_name, reader.shape(piece)
    if form == "plain" or form == "float32":
        dtype = torch.float32 if form == "float32" else plain
        yield Outgoing(name, dtype, shape, lambda: reader.read(piece))
        return

    def build() -> tuple[Tensor, Tensor]:
        made = reader.read_codes(piece, form)
        return made.codes, made.scales

    parts = Together(build)
    codes, scales = codes_shape(shape, form), scales_shape(shape)
    yield Outgoing(name, _CODES[form], codes, lambda: parts.take(0))
    yield Outgoing(name + SCALE, torch.float16, scales, lambda: parts.take(1))
