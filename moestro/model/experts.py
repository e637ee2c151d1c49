"""The routed experts' weights, stacked, and how tokens meet them on one device.

Knows choices, not how they were made. Next: moe.py.

Shapes: T tokens, D width, E experts, F expert width, G = 2F.
"""

import torch
from torch import Tensor, nn

from moestro.model.config import ModelConfig
from moestro.model.gate import ExpertChoice
from moestro.ops.kernels import Kernels, PackedExperts, Visits
from moestro.ops.panels import PackWeights
from moestro.ops.training import ExpertSet


class Experts(nn.Module):
    """Stacked SwiGLU weights: rows of `gate_up_proj` are the gate's, then the up projection's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, F = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F))
        self.packed: tuple[Kernels, PackedExperts] | None = None

    def as_set(self, choice: ExpertChoice, dtype: torch.dtype) -> ExpertSet:
        """Return the matrices and who visits them."""
        gate_up_EGD, down_EDF = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
        return ExpertSet(gate_up_EGD, down_EDF, Visits(*choice))

    def visit(self, x_TD: Tensor, choice: ExpertChoice) -> Tensor:
        """Send each token to its experts and sum what they return by weight: the packed ones."""
        assert self.packed is not None
        kernels, experts = self.packed
        return kernels.apply_experts(x_TD.float(), Visits(*choice), experts).to(x_TD.dtype)

    def prepare(self, kernels: Kernels, pack: PackWeights) -> None:
        """Take the weights packed, for good: each parameter goes before the next is packed."""
        gate_up = pack("gate_up_proj", "gate_up")
        del self.gate_up_proj
        self.packed = kernels, PackedExperts(gate_up, pack("down_proj", "rows"))
        del self.down_proj
