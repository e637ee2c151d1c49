"""One sparse layer: gate, routed experts, shared experts (DeepSeekMoE, arXiv 2412.19437 eq. 12).

Next: gate.py for the choice, experts.py for the work.

Shapes: B sequences, S tokens, D width, T = B * S.
"""

from torch import Tensor, nn

from moestro.model.config import ModelConfig
from moestro.model.context import Context
from moestro.model.experts import Experts
from moestro.model.feedforward import FeedForward
from moestro.model.gate import Gate


class MoE(nn.Module):
    """Each token visits the experts that its gate chose, and every shared expert."""

    def __init__(self, config: ModelConfig, moe_layer: int) -> None:
        super().__init__()
        self.gate = Gate(config, moe_layer)
        self.experts = Experts(config)
        self.shared_experts = (
            FeedForward(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)
            if config.n_shared_experts
            else None
        )

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Return routed plus shared experts' output."""
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        choice = self.gate(x_TD, context.fraction_T, context.trace)
        out_TD = self.experts(x_TD, choice, context.row_multiple)
        if self.shared_experts is not None:
            out_TD = out_TD + self.shared_experts(x_TD)
        return out_TD.view_as(x_BSD)
