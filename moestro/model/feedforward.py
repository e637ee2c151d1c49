"""Dense SwiGLU: the first layers' feed-forward, the shared experts, and comparisons' dense models.

Next: moe.py.
"""

import torch
from torch import Tensor, nn

from moestro.model.context import Context
from moestro.model.linear import Linear
from moestro.ops.kernels import Kernels, PackedExperts, Visits
from moestro.ops.panels import PackWeights
from moestro.ops.training import ExpertSet, visit_experts


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)); the gate's rows of `gate_up_proj` come first."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)
        self.packed: tuple[Kernels, PackedExperts] | None = None

    def forward(self, x: Tensor, context: Context, stream: Tensor) -> Tensor:
        """Add what each token becomes by itself to the stream."""
        if self.packed is not None:
            return stream + self.visit(x)
        x_TD, stream_TD = (each.reshape(-1, each.shape[-1]) for each in (x, stream))
        return visit_experts(x_TD, [self.as_set(x.dtype)], stream_TD).view_as(x)

    def as_set(self, dtype: torch.dtype) -> ExpertSet:
        """Return the matrices as one expert that every token visits."""
        gate_up_GD, down_DF = (
            part.weight.to(dtype) for part in (self.gate_up_proj, self.down_proj)
        )
        return ExpertSet(gate_up_GD[None], down_DF[None])

    def visit(self, x: Tensor) -> Tensor:
        """Return what each token becomes, by the packed matrices."""
        assert self.packed is not None
        kernels, experts = self.packed
        x_TD = x.reshape(-1, x.shape[-1]).float()
        weights_T1 = torch.ones(len(x_TD), 1)
        visits = Visits(
            weights_T1.new_zeros(weights_T1.shape, dtype=torch.int64), weights_T1, weights_T1.bool()
        )
        return kernels.apply_experts(x_TD, visits, experts).view_as(x).to(x.dtype)

    def prepare(self, kernels: Kernels, pack: PackWeights) -> None:
        """Take both matrices packed, for good, as one expert that every token visits."""
        gate_up = pack("gate_up_proj.weight", "gate_up")
        self.packed = kernels, PackedExperts(gate_up, pack("down_proj.weight", "rows"))
        del self.gate_up_proj, self.down_proj
