"""Real tiny models, built in milliseconds from a seed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.model import Transformer

BuildConfig = Callable[..., ModelConfig]
BuildModel = Callable[..., Transformer]

_TINY: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 12,
    "intermediate_size": 10,
    "moe_intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "query compression, biases": {"q_lora_rank": 5, "attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "two mtp modules": {"num_nextn_predict_layers": 2},
    "tied, mtp": {"tie_word_embeddings": True, "num_nextn_predict_layers": 1},
    "two shared experts": {"n_shared_experts": 2},
    "no shared experts": {"n_shared_experts": 0},
    "all dense": {"first_k_dense_replace": 2},
    "budget": {
        "min_experts_per_tok": 1,
        "num_nextn_predict_layers": 1,
        "budget": BudgetConfig(fractions=(0.0, 1.0), thresholds=((-0.25, -0.75), (-0.125, -0.5))),
    },
    "version 2": {"model_type": "deepseek_v2", "topk_method": "greedy"},
    "version 2, groups": {
        "model_type": "deepseek_v2",
        "topk_method": "group_limited_greedy",
        "n_group": 2,
    },
}


def build_config(**changes: Any) -> ModelConfig:
    """Build a tiny shape with some fields changed."""
    return ModelConfig(**(_TINY | changes))


def build_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    """Build a tiny model whose every tensor, buffers too, is random."""
    model = Transformer(build_config(**changes))
    generator = torch.Generator().manual_seed(seed)
    weights = dict(model.named_parameters())
    state = {
        name: torch.randn(value.shape, generator=generator).to(
            dtype if name in weights else value.dtype
        )
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each kind of architecture that a checkpoint may hold."""
    changes: dict[str, Any] = request.param
    return changes


@pytest.fixture(scope="session")
def tiny_config() -> BuildConfig:
    """Build tiny shapes."""
    return build_config


@pytest.fixture(scope="session")
def tiny_model() -> BuildModel:
    """Build tiny models."""
    return build_model
