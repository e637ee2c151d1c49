"""Tiny shapes and models with random weights, built in milliseconds from a seed.

Every weight is random, norms and biases too: a term that is forgotten changes the result.
"""

from typing import Any

import torch

from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.model import Transformer

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "min_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "max_position_embeddings": 64,
}

# A run's shape in a configuration file: every part at the smallest size, the rest is the demo's.
MICRO_SHAPE: dict[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "n_routed_experts": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "max_position_embeddings": 64,
}


def tiny_config(**changes: Any) -> ModelConfig:
    """Build a tiny shape with some fields changed."""
    return ModelConfig(**(TINY | changes))


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Build a model whose norms lie around 1 and whose other weights are normal."""
    model = Transformer(config)
    fill_randomly(model, seed)
    return model.eval()


def fill_randomly(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter and saved buffer of any model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            center = 1.0 if "norm" in name else 0.0
            value.copy_(center + 0.2 * torch.randn(value.shape, generator=generator))


def random_tokens(config: ModelConfig, *shape: int, seed: int = 0) -> torch.Tensor:
    """Draw token ids of a model's vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, shape, generator=generator)


def linear_budget(config: ModelConfig) -> BudgetConfig:
    """Build a table that falls evenly over the distances that a gate gives."""
    fractions = tuple(i / 8 for i in range(9))
    row = tuple(-0.3 * fraction for fraction in fractions)
    return BudgetConfig(fractions=fractions, thresholds=(row,) * config.num_moe_layers)
