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
from moestro.ops.training import visit_experts


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

    def forward(self, x_BSD: Tensor, context: Context, stream_BSD: Tensor) -> Tensor:
        """Add routed plus shared experts' output to the stream."""
        x_TD, stream_TD = (each.reshape(-1, each.shape[-1]) for each in (x_BSD, stream_BSD))
        choice = self.gate(x_TD, context.fraction_T, context.trace)
        shared = self.shared_experts
        if self.experts.packed is not None:
            out_TD = self.experts.visit(x_TD, choice)
            out_TD = stream_TD + (out_TD if shared is None else out_TD + shared.visit(x_TD))
        else:
            sets = [self.experts.as_set(choice, x_TD.dtype)]
            if shared is not None:
                sets.append(shared.as_set(x_TD.dtype))
            out_TD = visit_experts(x_TD, sets, stream_TD, context.row_multiple)
        return out_TD.view_as(x_BSD)
