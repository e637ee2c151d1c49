"""Parameters, active parameters, arithmetic and cache bytes of a shape. No torch.

Counts multiply-adds as two operations. Next: config.py.
"""

from dataclasses import dataclass

from moestro.model.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Weights by part, embedding and head included.

    `mtp` is not part of `total`, as in DeepSeek's own figures.
    """

    total: int
    embedding: int
    head: int
    routed_experts: int
    mtp: int


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count a model's weights."""
    D, L = config.hidden_size, config.num_hidden_layers
    num_sparse = L - config.first_k_dense_replace
    embedding = config.vocab_size * D
    head = 0 if config.tie_word_embeddings else embedding
    dense = config.first_k_dense_replace * 3 * D * config.intermediate_size
    routed = num_sparse * config.n_routed_experts * _expert(config)
    rest = num_sparse * _around_experts(config) + L * (_attention(config) + 2 * D) + D
    mtp = config.num_nextn_predict_layers * _mtp_module(config, config.n_routed_experts)
    return ParameterCount(embedding + head + dense + routed + rest, embedding, head, routed, mtp)


def active_parameters(config: ModelConfig, experts: float) -> float:
    """Count the weights that one token's prediction uses at a mean of `experts` routed experts.

    Includes the head and one row of the embedding, excludes MTP modules.
    """
    count = count_parameters(config)
    idle = count.routed_experts * (1 - experts / config.n_routed_experts)
    lookup = count.embedding if not config.tie_word_embeddings else 0
    return count.total - idle - lookup + config.hidden_size * bool(lookup)


def training_flops_per_token(config: ModelConfig, seq_len: int, experts: float) -> float:
    """Return the arithmetic of forward and backward for one token, MTP modules included.

    Six operations per active matrix weight, and causal attention over half a sequence on average.
    """
    depth = config.num_nextn_predict_layers
    head = config.vocab_size * config.hidden_size
    ahead = depth * (_mtp_module(config, experts) + head)
    attention = (config.num_hidden_layers + depth) * _attention_pair(config) * seq_len / 2
    return 6 * (_active_blocks(config, experts) + head + ahead + attention)


def prefill_flops(config: ModelConfig, num_tokens: int) -> float:
    """Return the arithmetic of a prompt: layers and causal attention for each token, one head.

    Takes all `num_experts_per_tok` experts.
    """
    head = config.vocab_size * config.hidden_size
    blocks = _active_blocks(config, config.num_experts_per_tok)
    pairs = num_tokens * (num_tokens + 1) / 2
    attention = config.num_hidden_layers * _attention_pair(config) * pairs
    return 2 * (blocks * num_tokens + head + attention)


def cache_numbers_per_token(config: ModelConfig) -> int:
    """Return how many numbers the cache keeps per token: latent and rotated part of each layer."""
    return config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim)


def _active_blocks(config: ModelConfig, experts: float) -> float:
    """Count what a token uses between its row of the embedding and the head."""
    row = 0 if config.tie_word_embeddings else config.hidden_size
    return active_parameters(config, experts) - row - config.vocab_size * config.hidden_size


def _attention_pair(config: ModelConfig) -> int:
    """Return the multiply-adds of a query with one earlier token, in one layer."""
    return config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)


def _expert(config: ModelConfig) -> int:
    return 3 * config.hidden_size * config.moe_intermediate_size


def _around_experts(config: ModelConfig) -> int:
    gate = config.n_routed_experts * (config.hidden_size + config.has_balance_bias)
    return gate + config.n_shared_experts * _expert(config)


def _mtp_module(config: ModelConfig, experts: float) -> int:
    D = config.hidden_size
    return int(
        2 * D * D + 5 * D + _attention(config) + _around_experts(config) + experts * _expert(config)
    )


def _attention(config: ModelConfig) -> int:
    D, H, C = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    queries, has_bias = H * config.qk_head_dim, int(config.attention_bias)
    compressed = C + config.qk_rope_head_dim
    rank = config.q_lora_rank
    query = D * queries if rank is None else rank * (D + queries + 1 + has_bias)
    keys = D * compressed + C + C * H * (config.qk_nope_head_dim + config.v_head_dim)
    return query + keys + H * config.v_head_dim * D + has_bias * (compressed + D)
