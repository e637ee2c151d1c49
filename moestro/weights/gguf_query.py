"""Queries without compression, told as compressed ones, for llama.cpp.

As released, its `deepseek2` reads a model without `q_lora_rank` only at 26 or 27 layers (and one
shape of 48). Elsewhere the compression is a diagonal matrix that undoes the weight of the norm
before it, to the full width: the numbers are the same but for the norms' eps, which enters a query
twice (eps / 2 over the mean square of a layer's input, relatively). Next: gguf_export.py.

Shapes: D width.
"""

import dataclasses
import logging

import torch
from torch import Tensor

from moestro.weights.load import build_empty
from moestro.weights.names import Piece
from moestro.weights.quantize import Reader

log = logging.getLogger(__name__)

_PLAIN_LAYERS = (26, 27)
_Q = "q_proj.weight"
_Q_A, _Q_A_NORM, _Q_B = "q_a_proj.weight", "q_a_layernorm.weight", "q_b_proj.weight"


class QueryReader(Reader):
    """Reads a model without query compression as one that compresses to its full width."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader.config, reader.weights)
        self.config = dataclasses.replace(reader.config, q_lora_rank=reader.config.hidden_size)
        self._state = build_empty(self.config, reader.weights).state_dict()

    def read(self, piece: Piece) -> Tensor:
        """Return a weight's numbers."""
        layer, inside, name = piece.hf_name.partition("self_attn.")
        if not inside or name not in (_Q_A, _Q_A_NORM, _Q_B):
            return super().read(piece)
        norm_D = self._read(f"{layer}input_layernorm.weight", (self.config.hidden_size,)).float()
        if name == _Q_A:
            # An input whose weight is zero is zero, whatever it is multiplied by.
            return torch.where(norm_D == 0, 0.0, 1 / norm_D).diag()
        if name == _Q_A_NORM:
            return torch.ones_like(norm_D)
        return self._read(f"{layer}self_attn.{_Q}", self.shape(piece)).float() * norm_D


def as_llama_reads(reader: Reader) -> Reader:
    """Return a reader of a model that llama.cpp can load; say what it costs, or that none can."""
    config = reader.config
    is_plain = config.num_hidden_layers in _PLAIN_LAYERS
    if config.q_lora_rank is None and not is_plain:
        log.warning(
            "llama.cpp loads models without q_lora_rank at %s layers only: written with one of"
            " %d, which gives the same numbers",
            " or ".join(map(str, _PLAIN_LAYERS)),
            config.hidden_size,
        )
        return QueryReader(reader)
    if config.q_lora_rank is not None and is_plain:
        log.warning(
            "llama.cpp does not load models of %d layers with a q_lora_rank: Moestro reads the"
            " file, llama.cpp will not",
            config.num_hidden_layers,
        )
    return reader
