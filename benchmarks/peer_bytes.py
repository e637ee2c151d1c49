"""What a token must read of a model, in bytes: the roofline of decoding."""

from pathlib import Path

from gguf import GGUFReader

from moestro.model.config import ModelConfig
from moestro.model.count import cache_numbers_per_token
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


def _tensors(model: Path) -> list[tuple[str, int]]:
    if model.is_file():
        return [(each.name, int(each.n_bytes)) for each in GGUFReader(model).tensors]
    return [
        (name, entry.num_bytes)
        for path in sorted(model.glob("*.safetensors"))
        for name, entry in read_header(path).items()
    ]
