"""One layer: norm, attention, norm, feed-forward, each added to the residual stream.

Next: attention.py, then moe.py.
"""

from torch import Tensor, nn

from moestro.model.attention import Attention
from moestro.model.config import ModelConfig
from moestro.model.context import Context
from moestro.model.feedforward import FeedForward
from moestro.model.linear import RMSNorm
from moestro.model.moe import MoE


class Block(nn.Module):
    """A dense or a sparse layer; `layer` counts on through the MTP modules."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.is_sparse = layer >= config.first_k_dense_replace
        self.mlp: MoE | FeedForward
        if self.is_sparse:
            self.mlp = MoE(config, layer - config.first_k_dense_replace)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Add attention and feed-forward to the stream."""
        attended_BSD = self.self_attn(self.input_layernorm(x_BSD), context)
        x_BSD, normed_BSD = self.post_attention_layernorm.of_sum(x_BSD, attended_BSD)
        out_BSD: Tensor = self.mlp(normed_BSD, context, x_BSD)
        return out_BSD
