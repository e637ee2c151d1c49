"""Dense SwiGLU: the first layers' feed-forward, the shared experts, and comparisons' dense models.

Next: moe.py.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from moestro.model.linear import Linear


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)); the gate's rows of `gate_up_proj` come first."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out
