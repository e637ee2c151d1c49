"""Where the compressed latents of earlier tokens live between calls, and how new ones meet them.

Holds `kv_lora_rank + qk_rope_head_dim` numbers per token and layer, and nothing else of the past.
Next: attention.py; engine/pages.py for the cache that many requests share.

Shapes: B sequences, S new tokens, K tokens so far (new ones included), H heads, E rows of
`kv_b_proj` per head, C latent width, R rotary width, V value width.
"""

from typing import Protocol

import torch
from torch import Tensor

from moestro.model.config import ModelConfig
from moestro.ops.expansion import Expansion
from moestro.ops.latent import AttentionPath, attend, attend_alone
from moestro.ops.projected import Latents, Projected


class Cache(Protocol):
    """Storage of latents; the only part of the model that knows which tokens belong together."""

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Return the positions_S of the new tokens in their sequences."""

    def attend(
        self, layer: int, projected: Projected, up: Expansion, path: AttentionPath
    ) -> Tensor:
        """Store a layer's new latents and return out_BSHV of attending to all up to each one."""

    def advance(self, num_tokens: int) -> None:
        """Count the new tokens as stored, once every layer has seen them."""


class NoCache:
    """The cache of a pass that begins at the first token and is not continued."""

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Count from 0."""
        return torch.arange(num_tokens, device=device)

    def attend(
        self, layer: int, projected: Projected, up: Expansion, path: AttentionPath
    ) -> Tensor:
        """Attend to the new latents, which are all there are."""
        return attend_alone(projected, up.matrix(projected.query_BSHQ.dtype), path)

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

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Count on from the tokens that are there."""
        return torch.arange(self.length, self.length + num_tokens, device=device)

    def attend(
        self, layer: int, projected: Projected, up: Expansion, path: AttentionPath
    ) -> Tensor:
        """Store a layer's new latents behind the old and attend to all of them."""
        new = projected.latents()
        end = self.length + new.latent_BKC.shape[1]
        assert end <= self.capacity, f"cache of {self.capacity} tokens asked to hold {end}"
        self._latent_LBTC[layer, :, self.length : end] = new.latent_BKC
        self._rope_LBTR[layer, :, self.length : end] = new.rope_BKR
        keys = Latents(self._latent_LBTC[layer, :, :end], self._rope_LBTR[layer, :, :end])
        return attend(projected.query(), keys, up.matrix(new.latent_BKC.dtype), path)

    def advance(self, num_tokens: int) -> None:
        """Count the new tokens as stored, once every layer has seen them."""
        self.length += num_tokens

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        assert 0 <= length <= self.length
        self.length = length
