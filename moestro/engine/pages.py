"""The paged latent cache: one pool of blocks for all sequences, and one step's view of it.

Tensors only: which block is whose is decided in blocks.py. Next: batch.py, ops/paged.py.

Shapes: L layers (MTP modules' last), A blocks, Z tokens per block, W = latent + rotary width,
T tokens of the batch, H heads, E rows of `kv_b_proj` per head, C latent width, V value width.
"""

import math
from collections import abc

import numpy as np
import torch
from torch import Tensor

from moestro.model.config import ModelConfig
from moestro.ops.expansion import Expansion
from moestro.ops.latent import AttentionPath
from moestro.ops.paged import Group, paged
from moestro.ops.projected import Projected


class Pages:
    """The pool. Block `num_blocks`, one more than are given out, takes what nobody keeps."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        width = config.kv_lora_rank + config.qk_rope_head_dim
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.pages_LAZW = _zeros((layers, num_blocks + 1, block_size, width), dtype, device)

    @property
    def scratch_slot(self) -> int:
        """The slot of tokens that belong to nobody."""
        return self.num_blocks * self.block_size


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros, not whatever memory holds: a masked NaN would still be NaN."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks the system for zeroed memory, which costs nothing until it is written.
    data = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(data).view(dtype).view(shape)


class PagedCache:
    """The cache of one step: where each token's latent goes, and what each sequence sees."""

    def __init__(
        self,
        pages: Pages,
        positions_T: Tensor,
        slots_T: Tensor,
        groups: abc.Sequence[Group],
        row_multiple: int,
    ) -> None:
        self._pages = pages
        self._positions_T = positions_T
        self._slots_T = slots_T
        self._groups = groups
        self._row_multiple = row_multiple

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Return each token's position in its own sequence."""
        assert num_tokens == len(self._positions_T)
        return self._positions_T

    def attend(
        self, layer: int, projected: Projected, up: Expansion, path: AttentionPath
    ) -> Tensor:
        """Write the new latents to their slots and attend, always along the absorbed path.

        One path for prompts and answers alike, so that a token's bits do not depend on how it came.
        """
        pages_AZW, new = self._pages.pages_LAZW[layer], projected.latents()
        new_TW = torch.cat([new.latent_BKC[0], new.rope_BKR[0]], dim=-1)
        pages_AZW.view(-1, new_TW.shape[-1]).index_copy_(0, self._slots_T, new_TW)
        return paged(projected.query(), pages_AZW, self._groups, up, self._row_multiple)[None]

    def advance(self, num_tokens: int) -> None:
        """Keep nothing: the scheduler counts."""
