"""Multi-token prediction: a module that predicts one token further ahead.

Eq. 21-24 of arXiv 2412.19437. Shares the main model's embedding and head. Next: model.py.

Shapes: B sequences, S tokens, D width.
"""

import torch
from torch import Tensor, nn

from moestro.model.block import Block
from moestro.model.config import ModelConfig
from moestro.model.context import Context
from moestro.model.linear import Linear, RMSNorm


class MTPModule(nn.Module):
    """Joins a hidden state with the embedding of the token after it, and runs one more layer."""

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.block = Block(config, config.num_hidden_layers + depth)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_BSD: Tensor, next_BSD: Tensor, context: Context) -> Tensor:
        """Return the state whose head predicts the token after next.

        `hidden_BSD` is the main model's normed output (or the previous module's), `next_BSD` the
        embedding of the token that follows each position.
        """
        # The embedding comes first, as in the published checkpoints; the paper writes it second.
        joined = torch.cat([self.enorm(next_BSD), self.hnorm(hidden_BSD)], dim=-1)
        out: Tensor = self.norm(self.block(self.eh_proj(joined), context))
        return out
