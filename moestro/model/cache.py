"""Where the compressed latents of earlier tokens live between calls.

Holds `kv_lora_rank + qk_rope_head_dim` numbers per token and layer, and nothing else of the past.
Knows no attention. Next: attention.py.

Shapes: B sequences, S new tokens, K tokens so far (new ones included), C latent width,
R rotary width.
"""

from typing import Protocol

import torch
from torch import Tensor

from moestro.model.config import ModelConfig
from moestro.ops.latent import Latents


class Cache(Protocol):
    """Storage of latents, one sequence per row of the batch."""

    length: int

    def extend(self, layer: int, latent_BSC: Tensor, rope_BSR: Tensor) -> Latents:
        """Store a layer's new latents behind the old and return all of them."""

    def advance(self, num_tokens: int) -> None:
        """Count the new tokens as stored, once every layer has been extended by them."""


class NoCache:
    """The cache of a pass that begins at the first token and is not continued."""

    length = 0

    def extend(self, layer: int, latent_BSC: Tensor, rope_BSR: Tensor) -> Latents:
        """Return the new latents, which are all there are."""
        return Latents(latent_BSC, rope_BSR)

    def advance(self, num_tokens: int) -> None:
        """Keep nothing."""


class ContiguousCache:
    """One preallocated array for each layer: the plain cache of a sequence or an even batch."""

    def __init__(
        self, config: ModelConfig, capacity: int, batch_size: int = 1, like: Tensor | None = None
    ) -> None:
        like = torch.empty(0) if like is None else like
        shape = (config.num_hidden_layers, batch_size, capacity)
        self.length = 0
        self.capacity = capacity
        self._latent_LBTC = like.new_empty(*shape, config.kv_lora_rank)
        self._rope_LBTR = like.new_empty(*shape, config.qk_rope_head_dim)

    def extend(self, layer: int, latent_BSC: Tensor, rope_BSR: Tensor) -> Latents:
        """Store a layer's new latents behind the old and return all of them."""
        end = self.length + latent_BSC.shape[1]
        assert end <= self.capacity, f"cache of {self.capacity} tokens asked to hold {end}"
        self._latent_LBTC[layer, :, self.length : end] = latent_BSC
        self._rope_LBTR[layer, :, self.length : end] = rope_BSR
        return Latents(self._latent_LBTC[layer, :, :end], self._rope_LBTR[layer, :, :end])

    def advance(self, num_tokens: int) -> None:
        """Count the new tokens as stored, once every layer has been extended by them."""
        self.length += num_tokens

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        assert 0 <= length <= self.length
        self.length = length
