"""How long a sequence may be, and how many blocks the cache gets. Next: engine.py, pages.py."""

import torch

from moestro.engine.config import EngineConfig
from moestro.errors import ConfigError
from moestro.model.config import ModelConfig
from moestro.ops.memory import free_bytes
from moestro.ops.rows import round_up

_SHARE_OF_MEMORY = 0.25


def length_limit(config: EngineConfig, shape: ModelConfig) -> int:
    """Return how many tokens prompt and answer may have together."""
    if config.max_length is None:
        return shape.max_position_embeddings
    if not 1 <= config.max_length <= shape.max_position_embeddings:
        raise ConfigError(
            f"max_length is {config.max_length}: this model reads 1 to"
            f" {shape.max_position_embeddings} tokens"
        )
    return config.max_length


def cache_blocks(
    config: EngineConfig, shape: ModelConfig, dtype: torch.dtype, device: torch.device
) -> int:
    """Return the number of blocks: as configured, or what the batch can use and memory allows."""
    size = config.cache.block_size
    if config.cache.num_tokens is not None:
        return config.cache.num_tokens // size
    longest = round_up(length_limit(config, shape), size)
    wanted = config.max_batch * longest
    layers = shape.num_hidden_layers + shape.num_nextn_predict_layers
    width = shape.kv_lora_rank + shape.qk_rope_head_dim
    bytes_per_token = layers * width * torch.finfo(dtype).bits // 8
    affordable = int(free_bytes(device) * _SHARE_OF_MEMORY) // bytes_per_token
    # At least one sequence of full length, whatever memory says: few requests are as long.
    return max(min(wanted, affordable), longest) // size
