"""What a token must read of a model, in bytes and operations: the roofline of the figures."""

from pathlib import Path

from gguf import GGUFReader

from moestro.model.config import ModelConfig
from moestro.model.count import active_parameters, cache_numbers_per_token
from moestro.weights.header import read_header

# Numbers of 16 bits in every peer's cache; some keep more numbers than the latents.
_CACHE_ITEM_BYTES = 2


def count_bytes(model: Path) -> dict[str, int]:
    """Return the bytes of routed experts, and of all else that every token reads."""
    sizes = {"fixed": 0, "routed": 0}
    for name, num_bytes in _tensors(model):
        # Of the embedding a token reads one row.
        if name not in ("token_embd.weight", "model.embed_tokens.weight"):
            is_routed = "_exps." in name or ".mlp.experts." in name
            sizes["routed" if is_routed else "fixed"] += num_bytes
    return sizes


def decode_bytes(
    config: ModelConfig, sizes: dict[str, int], experts: float, context: int, streams: int = 1
) -> float:
    """Return what a step reads that visits so many distinct experts in each layer."""
    cache = context * cache_numbers_per_token(config) * _CACHE_ITEM_BYTES
    return sizes["fixed"] + sizes["routed"] * experts / config.n_routed_experts + streams * cache


def prefill_operations(config: ModelConfig, num_tokens: int) -> float:
    """Return the arithmetic of a prompt: matrices for each token, causal attention, one head."""
    head = config.vocab_size * config.hidden_size
    matrices = active_parameters(config, config.num_experts_per_tok) - head - config.hidden_size
    heads = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    pairs = num_tokens * (num_tokens + 1) / 2
    return 2 * (matrices * num_tokens + head + config.num_hidden_layers * heads * pairs)


def _tensors(model: Path) -> list[tuple[str, int]]:
    if model.is_file():
        return [(each.name, int(each.n_bytes)) for each in GGUFReader(model).tensors]
    return [
        (name, entry.num_bytes)
        for path in sorted(model.glob("*.safetensors"))
        for name, entry in read_header(path).items()
    ]
