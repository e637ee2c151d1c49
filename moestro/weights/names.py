"""One table: which Hugging Face tensor fills which part of which parameter of ours; used both ways.

Knows names, places and the configuration, not what is stored. Next: stored.py, load.py, export.py.

Shapes: H heads, N key width without position, V value width, C latent width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from moestro.model.config import ModelConfig

Index = tuple[int | slice, ...]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
KV_B, K_B, V_B = (f"{name}_proj.weight" for name in ("kv_b", "k_b", "v_b"))


@dataclass(frozen=True)
class Share:
    """What of each head's rows of `kv_b_proj` a tensor of the absorbed layout holds.

    Keys are transposed there: row h * C + c has head h's N inputs to latent c.
    """

    num_heads: int
    rows: slice
    is_transposed: bool


@dataclass(frozen=True)
class Piece:
    """The Hugging Face tensor `hf_name` is `state_dict()[key][index]`, or a share of it."""

    hf_name: str
    key: str
    index: Index = ()
    # Whether DeepSeek's FP8 checkpoints store it in scaled blocks.
    is_quantizable: bool = False
    share: Share | None = None

    def part(self, value: Tensor) -> Tensor:
        """Return the view of `state_dict()[key]` that this tensor fills, by head for a share."""
        chosen = value[self.index]
        if self.share is None:
            return chosen
        heads = chosen.unflatten(0, (self.share.num_heads, -1))[:, self.share.rows]
        return heads.transpose(1, 2) if self.share.is_transposed else heads

    def shape(self, value: Tensor) -> tuple[int, ...]:
        """Return the shape that the tensor has in a checkpoint."""
        part = self.part(value)
        return tuple(part.shape if self.share is None else part.flatten(0, 1).shape)


def pieces(config: ModelConfig, is_absorbed: bool = False) -> list[Piece]:
    """List every tensor of a checkpoint; together they fill the model's state exactly once.

    `is_absorbed`: `kv_b_proj` comes as `k_b_proj` and `v_b_proj`, as the absorbed path wants it.
    """
    table = _all(config)
    return [part for piece in table for part in _split(config, piece)] if is_absorbed else table


def _all(config: ModelConfig) -> list[Piece]:
    table = [
        Piece(EMBEDDING, "embed_tokens.weight"),
        Piece("model.norm.weight", "norm.weight"),
    ]
    if not config.tie_word_embeddings:
        table.append(Piece(HEAD, "lm_head.weight"))
    for i in range(config.num_hidden_layers):
        is_sparse = i >= config.first_k_dense_replace
        table += _layer(config, f"model.layers.{i}", f"layers.{i}", is_sparse)
    for k, theirs in enumerate(_mtp_prefixes(config)):
        names = {
            "enorm": "enorm",
            "hnorm": "hnorm",
            "eh_proj": "eh_proj",
            "norm": "shared_head.norm",
        }
        table += [
            Piece(f"{theirs}.{hf}.weight", f"mtp.{k}.{own}.weight") for own, hf in names.items()
        ]
        table += _layer(config, theirs, f"mtp.{k}.block", is_sparse=True)
    return table


def _split(config: ModelConfig, piece: Piece) -> list[Piece]:
    if not piece.hf_name.endswith(KV_B):
        return [piece]
    heads, width = config.num_attention_heads, config.qk_nope_head_dim
    shares = {
        K_B: Share(heads, slice(0, width), is_transposed=True),
        V_B: Share(heads, slice(width, None), is_transposed=False),
    }
    stem = piece.hf_name.removesuffix(KV_B)
    return [
        Piece(stem + name, piece.key, is_quantizable=True, share=share)
        for name, share in shares.items()
    ]


def mtp_pieces(config: ModelConfig) -> list[Piece]:
    """List the part of `pieces` that belongs to the MTP modules."""
    return [piece for piece in pieces(config) if piece.key.startswith("mtp.")]


def aliases(config: ModelConfig) -> list[Piece]:
    """List the copies of embedding and head that DeepSeek writes with each MTP module."""
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    table = []
    for theirs in _mtp_prefixes(config):
        table.append(Piece(f"{theirs}.embed_tokens.weight", "embed_tokens.weight"))
        table.append(Piece(f"{theirs}.shared_head.head.weight", head))
    return table


def _mtp_prefixes(config: ModelConfig) -> list[str]:
    first = config.num_hidden_layers
    return [f"model.layers.{first + k}" for k in range(config.num_nextn_predict_layers)]


def _layer(config: ModelConfig, theirs: str, own: str, is_sparse: bool) -> Iterator[Piece]:
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield Piece(f"{theirs}.{name}.weight", f"{own}.{name}.weight")
    yield from _attention(config, f"{theirs}.self_attn", f"{own}.self_attn")
    if is_sparse:
        yield from _sparse(config, f"{theirs}.mlp", f"{own}.mlp")
    else:
        yield from _dense(config.intermediate_size, f"{theirs}.mlp", f"{own}.mlp")


def _attention(config: ModelConfig, theirs: str, own: str) -> Iterator[Piece]:
    with_bias = ["kv_a_proj_with_mqa", "o_proj"]
    matrices = ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    norms = ["kv_a_layernorm"]
    if config.q_lora_rank is None:
        matrices.append("q_proj")
    else:
        matrices += ["q_a_proj", "q_b_proj"]
        norms.append("q_a_layernorm")
        with_bias.append("q_a_proj")
    for name in matrices:
        yield Piece(f"{theirs}.{name}.weight", f"{own}.{name}.weight", is_quantizable=True)
    for name in norms:
        yield Piece(f"{theirs}.{name}.weight", f"{own}.{name}.weight")
    if config.attention_bias:
        for name in with_bias:
            yield Piece(f"{theirs}.{name}.bias", f"{own}.{name}.bias")


def _dense(width: int, theirs: str, own: str) -> Iterator[Piece]:
    gate_up, down = f"{own}.gate_up_proj.weight", f"{own}.down_proj.weight"
    yield Piece(f"{theirs}.gate_proj.weight", gate_up, (slice(0, width),), is_quantizable=True)
    yield Piece(
        f"{theirs}.up_proj.weight", gate_up, (slice(width, 2 * width),), is_quantizable=True
    )
    yield Piece(f"{theirs}.down_proj.weight", down, is_quantizable=True)


def _sparse(config: ModelConfig, theirs: str, own: str) -> Iterator[Piece]:
    yield Piece(f"{theirs}.gate.weight", f"{own}.gate.weight")
    if config.has_balance_bias:
        bias = "gate.e_score_correction_bias"
        yield Piece(f"{theirs}.{bias}", f"{own}.{bias}")
    width = config.moe_intermediate_size
    rows = {"gate_proj": slice(0, width), "up_proj": slice(width, 2 * width)}
    for e in range(config.n_routed_experts):
        expert = f"{theirs}.experts.{e}"
        for name, part in rows.items():
            yield Piece(f"{expert}.{name}.weight", f"{own}.experts.gate_up_proj", (e, part), True)
        yield Piece(f"{expert}.down_proj.weight", f"{own}.experts.down_proj", (e,), True)
    if config.n_shared_experts:
        shared = width * config.n_shared_experts
        yield from _dense(shared, f"{theirs}.shared_experts", f"{own}.shared_experts")
