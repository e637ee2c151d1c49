"""Multi-head latent attention: compress, cache, attend (arXiv 2412.19437, eq. 1-11).

Only the latent and its rotated part reach the cache.
Next: ops/projected.py for what lies between, ops/latent.py for the two ways to attend.

Shapes: B sequences, S tokens, D width, H heads, V value width, C latent width.
"""

from torch import Tensor, nn

from moestro.model.config import ModelConfig
from moestro.model.context import Context
from moestro.model.linear import Linear, RMSNorm
from moestro.ops import rope
from moestro.ops.expansion import Expansion, PackedExpansion
from moestro.ops.kernels import Kernels, Packed
from moestro.ops.panels import PackWeights
from moestro.ops.projected import Projected, Rotary


class Attention(nn.Module):
    """MLA, with query compression when the configuration has a `q_lora_rank`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        D, H, C = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        has_bias, rank = config.attention_bias, config.q_lora_rank
        if rank is None:
            self.q_proj = Linear(D, H * config.qk_head_dim)
        else:
            self.q_a_proj = Linear(D, rank, has_bias)
            # The reference leaves inner norms at their default eps, whatever `rms_norm_eps` says.
            self.q_a_layernorm = RMSNorm(rank)
            self.q_b_proj = Linear(rank, H * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(D, C + config.qk_rope_head_dim, has_bias)
        self.kv_a_layernorm = RMSNorm(C)
        self.kv_b_proj = Linear(C, H * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(H * config.v_head_dim, D, has_bias)
        self.packed_up: PackedExpansion | None = None
        self.scale = softmax_scale(config)

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Attend to all tokens up to each one's own."""
        B, S, _ = x_BSD.shape
        config = self.config
        projected = Projected(
            self._query(x_BSD).view(B, S, -1, config.qk_head_dim),
            self.kv_a_proj_with_mqa(x_BSD),
            self.kv_a_layernorm.weight,
            self.kv_a_layernorm.eps,
            Rotary(context.cos_SP, context.sin_SP, config.rope_interleave),
            self.scale,
        )
        up = Expansion(None if self.packed_up else self._up(), self.packed_up)
        out_BSHV = context.cache.attend(self.layer, projected, up, context.path)
        out_BSD: Tensor = self.o_proj(out_BSHV.reshape(B, S, -1))
        return out_BSD

    def prepare(self, kernels: Kernels, pack: PackWeights) -> None:
        """Take `kv_b_proj` packed as the absorbed path needs it, for good."""
        keys, values = pack("kv_b_proj.weight", "keys"), pack("kv_b_proj.weight", "values")
        self.packed_up = PackedExpansion(Packed(kernels, keys), Packed(kernels, values))
        del self.kv_b_proj

    def _up(self) -> Tensor:
        C, H = self.config.kv_lora_rank, self.config.num_attention_heads
        return self.kv_b_proj.weight.view(H, -1, C)

    def _query(self, x_BSD: Tensor) -> Tensor:
        query: Tensor
        if self.config.q_lora_rank is None:
            query = self.q_proj(x_BSD)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        return query


def softmax_scale(config: ModelConfig) -> float:
    """Return what scores are multiplied by, with YaRN's temperature."""
    scale = config.qk_head_dim**-0.5
    stretch = config.rope
    if stretch.kind == "yarn" and stretch.mscale_all_dim:
        scale *= rope.yarn_mscale(stretch.factor, stretch.mscale_all_dim) ** 2
    return scale
