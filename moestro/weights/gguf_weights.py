"""The weights in a GGUF file of llama.cpp's `deepseek2` architecture, under Hugging Face names.

Q8_0 and Q4_0 come as codes and scales, the other blocks as floats. Knows layouts, not which weights
a model needs. Next: gguf_names.py, moestro/gguf_file.py.
"""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from moestro.errors import CheckpointError
from moestro.gguf_file import GgufFile, Place
from moestro.model.config import ModelConfig
from moestro.ops import gguf_blocks
from moestro.ops.quantize import Quantized, are_finite, dequantize
from moestro.weights.gguf_config import ARCHITECTURE
from moestro.weights.gguf_names import Spot, find_spot, hf_names, layer_of
from moestro.weights.stored import Stored

log = logging.getLogger(__name__)

_BIAS = "mlp.gate.e_score_correction_bias"


class GgufWeights:
    """The weights of one file."""

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self.path = file.path
        self._file = file
        self._num_experts = config.n_routed_experts
        left_out = _mtp_tensors(file, config)
        if left_out:
            log.warning("%s: %d tensors of MTP modules are left out", file.path, len(left_out))
        self._names = [
            name
            for tensor in file.tensors
            if tensor not in left_out
            for name in hf_names(tensor, config.n_routed_experts)
        ]
        self._absent = _absent_biases(config, set(self._names))

    def names(self) -> list[str]:
        """Return the names of all weights; a selection bias that the file leaves out is zero."""
        return self._names + self._absent

    def file(self, name: str) -> Path:
        """Return the file that holds a weight."""
        return self.path

    def stored(self, name: str, shape: tuple[int, ...]) -> Stored:
        """Say how a weight is stored; CheckpointError unless it can be read in this shape."""
        if name in self._absent:
            return Stored("plain", torch.float32, lambda: torch.zeros(shape))
        spot = find_spot(name)
        place = self._file.tensors[spot.tensor]
        self._check_shape(spot, place, shape)
        kind = place.type.name
        if gguf_blocks.is_float(kind):
            read = gguf_blocks.read_floats(self._bytes(spot), kind)
            return Stored("plain", read.dtype, lambda: read.view(shape))
        if kind in gguf_blocks.CODES:
            return self._stored_in_codes(spot, kind, shape)

        def read_blocks() -> Tensor:
            return self._finite(spot, gguf_blocks.read_blocks(self._bytes(spot), kind)).view(shape)

        return Stored("blocks", torch.float32, read_blocks)

    def _stored_in_codes(self, spot: Spot, kind: str, shape: tuple[int, ...]) -> Stored:
        def read_codes() -> Quantized:
            made = gguf_blocks.split_codes(self._bytes(spot), kind, shape[-1])
            self._finite(spot, made.scales)
            return made

        return Stored(
            gguf_blocks.CODES[kind],
            torch.float32,
            lambda: dequantize(read_codes()).view(shape),
            read_codes,
        )

    def _bytes(self, spot: Spot) -> Tensor:
        data = torch.from_numpy(self._file.bytes_of(spot.tensor))
        return data if spot.expert is None else data.view(self._num_experts, -1)[spot.expert]

    def _check_shape(self, spot: Spot, place: Place, shape: tuple[int, ...]) -> None:
        wanted = shape if spot.expert is None else (self._num_experts, *shape)
        # Heads may have a dimension of their own; rows are what blocks are cut from.
        has_rows = place.shape[-1] == wanted[-1]
        if not has_rows or math.prod(place.shape) != math.prod(wanted):
            raise CheckpointError(
                f"{self.path}: {spot.tensor} has shape {list(place.shape)}, expected"
                f" {list(wanted)}: convert the model anew"
            )

    def _finite(self, spot: Spot, values: Tensor) -> Tensor:
        if not are_finite(values):
            raise CheckpointError(
                f"{self.path}: {spot.tensor} holds a scale that is not finite: copy the file again"
            )
        return values


def _mtp_tensors(file: GgufFile, config: ModelConfig) -> set[str]:
    # Without this key such layers are none of the model's, and must be refused.
    if f"{ARCHITECTURE}.nextn_predict_layers" not in file.metadata:
        return set()
    return {name for name in file.tensors if (layer_of(name) or 0) >= config.num_hidden_layers}


def _absent_biases(config: ModelConfig, names: set[str]) -> list[str]:
    if not config.has_balance_bias:
        return []
    layers = range(config.first_k_dense_replace, config.num_hidden_layers)
    wanted = [f"model.layers.{i}.{_BIAS}" for i in layers]
    return [name for name in wanted if name not in names]
