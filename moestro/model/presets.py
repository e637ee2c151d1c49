"""Shapes by name, from the demo's to DeepSeek-V3's 671 G parameters, as data. No torch.

Next: config.py for what the words mean.
"""

import dataclasses
from typing import Any

from moestro.errors import ConfigError
from moestro.model.config import ModelConfig

_V3_GATE = {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
_V3_YARN = {
    "kind": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip

# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    # Minutes on two cores: what `moestro demo` trains.
    "demo": {
        "vocab_size": 2048, "hidden_size": 96, "intermediate_size": 256,
        "moe_intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3,
        "n_routed_experts": 16, "num_experts_per_tok": 4, "min_experts_per_tok": 2,
        "n_shared_experts": 1, "kv_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
        "v_head_dim": 32, "num_nextn_predict_layers": 1, "max_position_embeddings": 512,
        "initializer_range": 0.05,
    },
    # 119 M parameters, 45 M active: an evening on a laptop, minutes on a GPU.
    "small": {
        "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 2048,
        "moe_intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
        "n_routed_experts": 16, "num_experts_per_tok": 4, "min_experts_per_tok": 2,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 256, "kv_lora_rank": 128,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "num_nextn_predict_layers": 1, "max_position_embeddings": 4096,
    },
    # 2.3 G parameters, 387 M active: one GPU.
    "mid": {
        "vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 4096,
        "moe_intermediate_size": 704, "num_hidden_layers": 16, "num_attention_heads": 16,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2,
        "first_k_dense_replace": 1, "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64, "v_head_dim": 64, "max_position_embeddings": 8192,
    },
    # DeepSeek-V2-Lite, 15.7 G parameters.
    "v2-lite": {
        "model_type": "deepseek_v2", "topk_method": "greedy", "norm_topk_prob": False,
        "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2,
        "first_k_dense_replace": 1, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840,
        "rope": _V3_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    # Moonlight-16B-A3B, 16 G parameters, 3 G active.
    "moonlight": {
        "vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2,
        "first_k_dense_replace": 1, "routed_scaling_factor": 2.446, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope": {"theta": 50000.0},
    },
    # DeepSeek-V3, 671 G parameters, 37 G active, one MTP module.
    "v3": _V3_GATE | {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
        "n_shared_experts": 1, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "num_nextn_predict_layers": 1, "max_position_embeddings": 163840,
        "rope": _V3_YARN,
    },
}
# fmt: on


def preset_tables(name: str) -> dict[str, Any]:
    """Return a preset's settings as the nested tables of a configuration file."""
    if name not in PRESETS:
        raise ConfigError(f"preset: {name!r} is not one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def dense_twin(config: ModelConfig, num_experts: int) -> ModelConfig:
    """Return the dense shape that does as much arithmetic as `num_experts` routed experts.

    Its feed-forward is as wide as those and the shared experts together. It has no MTP modules:
    theirs are sparse in the published shape.
    """
    width = (num_experts + config.n_shared_experts) * config.moe_intermediate_size
    return dataclasses.replace(
        config,
        first_k_dense_replace=config.num_hidden_layers,
        intermediate_size=width,
        num_nextn_predict_layers=0,
    )
