"""First weights that already copy: an induction circuit, planted before the first step.

Text repeats itself, and a transformer learns to continue a repetition with two heads in a row
(Olsson et al., arXiv 2209.11895): one carries along which token stood before, the next looks for
the place whose predecessor is the present token and predicts what stands there. Neither is of use
without the other, so gradients find them late: here after some millions of tokens, a whole
demonstration. A fresh model is given both instead, in one head each; training keeps and refines
them. The idea of beginning where training would end is that of mimetic initialization (Trockman and
Kolter, arXiv 2305.09828).

Next: initialize.py for the other first weights.

Shapes: V vocabulary, D width, C latent width, H heads, N / R query widths without / with rotary
position, P = R / 2 pairs, W width of the circuit, K numbers that a query is made of.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moestro.model.attention import Attention
from moestro.model.block import Block
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.model.mtp import MTPModule

# Dimension 0 of every embedding, in standard deviations: what heads that look at places only turn.
_CONSTANT = 20.0
# Scores, in nats: how much better the place before fits than an average one, and a token's like
# than another. Far above what a softmax needs, since the first hundred steps wear them down.
_LOOK_BACK = 96.0
_MATCH = 32.0
# What a head writes, in an embedding's standard deviations, and how strongly the last is believed.
_WRITTEN = 3.0
_BELIEVED = 3.2
_HEAD = 0
# What reads a layer's input, by the ends of their names.
_READS_STREAM = (
    "q_proj.weight", "q_a_proj.weight", "kv_a_proj_with_mqa.weight", "gate.weight",
    "gate_up_proj", "gate_up_proj.weight", "eh_proj.weight", "lm_head.weight",
)  # fmt: skip


@dataclass(frozen=True)
class _Stream:
    """Where the circuit keeps what in the residual stream: three orthonormal bases (W, D).

    `now` reads the token itself, `before` its predecessor, `ahead` the one that is predicted.
    `size` is the standard deviation of a token's dimensions. A layer's input has been normed:
    `token_scale` and `constant` are the sizes of a token's dimensions and of dimension 0 there.
    """

    now_WD: Tensor
    before_WD: Tensor
    ahead_WD: Tensor
    size: float
    token_scale: float
    constant: float


def plant_induction(model: Transformer, seed: int) -> bool:
    """Write the circuit over the first weights; return whether the shape had room for it.

    It needs two layers and a head of its own matrix. Nothing but the circuit reads dimension 0.
    """
    config = model.config
    width = _circuit_width(config)
    if width < 1 or model.lm_head is None:
        return False
    stream = _lay_out(config, width, seed)
    with torch.no_grad():
        model.embed_tokens.weight[:, 0] = _CONSTANT * config.initializer_range
        for name, parameter in model.named_parameters():
            if name.endswith(_READS_STREAM):
                parameter[..., 0] = 0
        _plant_look_back(_attention(model, 0), stream, model.frequencies_P)
        _plant_match(_attention(model, 1), stream)
        for module in model.mtp:
            assert isinstance(module, MTPModule)
            _plant_in_module(module, stream)
        _plant_belief(model.lm_head.weight, model.embed_tokens.weight, stream, config)
    return True


def _circuit_width(config: ModelConfig) -> int:
    """Return how many dimensions tell tokens apart in the circuit; 0 where it has no room."""
    if config.num_hidden_layers < 2 or config.tie_word_embeddings:
        return 0
    query_rank = config.q_lora_rank or config.hidden_size
    return min(
        config.qk_nope_head_dim,
        config.v_head_dim,
        config.kv_lora_rank // 2,
        query_rank // 2,
        (config.hidden_size - 1) // 3,
    )


def _lay_out(config: ModelConfig, width: int, seed: int) -> _Stream:
    generator = torch.Generator().manual_seed(seed)
    D = config.hidden_size
    random = torch.randn(D - 1, 3 * width, generator=generator)
    bases = torch.zeros(3, width, D)
    bases[:, :, 1:] = torch.linalg.qr(random)[0].T.reshape(3, width, D - 1)
    token_scale = (D / (_CONSTANT**2 + D - 1)) ** 0.5
    constant = _CONSTANT * token_scale
    return _Stream(bases[0], bases[1], bases[2], config.initializer_range, token_scale, constant)


def _attention(model: Transformer, layer: int) -> Attention:
    block = model.layers[layer]
    assert isinstance(block, Block)
    return block.self_attn


def _plant_look_back(attention: Attention, stream: _Stream, frequencies_P: Tensor) -> None:
    """Layer 0: every place attends to the one before, and writes its token into `before`.

    Query and key are the same for all tokens, the key turned one place ahead, so that their score
    falls with the distance from the place before; faster pairs get more of it.
    """
    config = attention.config
    frequencies_P = frequencies_P.float().cpu()
    share_P = frequencies_P.sqrt() / frequencies_P.sqrt().sum()
    size_P = (_LOOK_BACK * share_P / attention.scale).sqrt()
    still_R = _pair_up(size_P, torch.zeros_like(size_P), config.rope_interleave)
    ahead_R = _pair_up(
        size_P * frequencies_P.cos(), size_P * frequencies_P.sin(), config.rope_interleave
    )
    constant_D = torch.zeros(config.hidden_size)
    constant_D[0] = 1 / stream.constant
    query_QK = torch.cat([torch.zeros(config.qk_nope_head_dim), still_R])[:, None]
    _write_query(attention, constant_D[None], query_QK, stream)
    rope_RD = attention.kv_a_proj_with_mqa.weight[config.kv_lora_rank :]
    rope_RD.copy_(ahead_R[:, None] * constant_D)
    _write_latents(attention, 0, stream.now_WD)
    _write_values(attention, 0, stream.before_WD, stream)


def _plant_match(attention: Attention, stream: _Stream) -> None:
    """Layer 1: seek places whose `before` is like this token; write their token into `ahead`."""
    config = attention.config
    W = stream.now_WD.shape[0]
    gain = (_MATCH / (W * attention.scale)) ** 0.5
    query_QK = torch.zeros(config.qk_head_dim, W)
    query_QK[:W] = torch.eye(W) * gain
    _write_query(attention, stream.now_WD / stream.token_scale, query_QK, stream)
    _write_latents(attention, 0, stream.before_WD)
    _write_latents(attention, W, stream.now_WD)
    keys_NC = _up_of_head(attention)[: config.qk_nope_head_dim]
    keys_NC.zero_()
    keys_NC[:W, :W] = torch.eye(W) * gain
    _write_values(attention, W, stream.ahead_WD, stream)


def _plant_in_module(module: MTPModule, stream: _Stream) -> None:
    """MTP: a place holds a token and, as its hidden state, the one before: one head is enough."""
    joined_D2D = module.eh_proj.weight
    D = stream.now_WD.shape[1]
    joined_D2D[:, D] = 0
    size = float(joined_D2D.std()) * (D * (1 + stream.token_scale**2)) ** 0.5
    both_WD = torch.cat([stream.now_WD, stream.before_WD])
    joined_D2D.sub_(both_WD.T @ (both_WD @ joined_D2D))
    joined_D2D[:, :D] += stream.now_WD.T @ stream.now_WD * (size / stream.token_scale)
    joined_D2D[:, D:] += stream.before_WD.T @ stream.now_WD * (_WRITTEN * size)
    _plant_match(module.block.self_attn, replace(stream, size=size, token_scale=1.0))


def _plant_belief(
    head_VD: Tensor, embedding_VD: Tensor, stream: _Stream, config: ModelConfig
) -> None:
    """Let the head predict the token whose embedding stands in `ahead`."""
    tokens_VW = embedding_VD @ stream.now_WD.T / config.initializer_range
    head_VD += tokens_VW @ stream.ahead_WD * (_BELIEVED / stream.now_WD.shape[0])


def _write_query(
    attention: Attention, reader_KD: Tensor, query_QK: Tensor, stream: _Stream
) -> None:
    """Make the circuit's head ask with K numbers of about 1, read from the stream."""
    config = attention.config
    if config.q_lora_rank is None:
        heads = attention.q_proj.weight.view(-1, config.qk_head_dim, config.hidden_size)
        heads[_HEAD] = query_QK @ reader_KD
        return
    K = len(reader_KD)
    attention.q_a_proj.weight[:K] = reader_KD * _row_size(config) * stream.token_scale
    heads = attention.q_b_proj.weight.view(-1, config.qk_head_dim, config.q_lora_rank)
    heads[_HEAD] = 0
    heads[_HEAD, :, :K] = query_QK


def _write_latents(attention: Attention, start: int, basis_WD: Tensor) -> None:
    """Keep a basis' part of the stream in latents from `start` on, as large as random rows' are."""
    rows = attention.kv_a_proj_with_mqa.weight[start : start + len(basis_WD)]
    rows.copy_(basis_WD * _row_size(attention.config))


def _write_values(attention: Attention, start: int, basis_WD: Tensor, stream: _Stream) -> None:
    """Let the circuit's head write the latents from `start` on into a part of the stream."""
    config, W = attention.config, len(basis_WD)
    values_EC = _up_of_head(attention)[config.qk_nope_head_dim :]
    values_EC.zero_()
    values_EC[:W, start : start + W] = torch.eye(W)
    out_DHE = attention.o_proj.weight.view(config.hidden_size, -1, config.v_head_dim)
    out_DHE[:, _HEAD] = 0
    out_DHE[:, _HEAD, :W] = basis_WD.T * _WRITTEN * stream.size


def _up_of_head(attention: Attention) -> Tensor:
    config = attention.config
    weight: Tensor = attention.kv_b_proj.weight
    return weight.view(config.num_attention_heads, -1, config.kv_lora_rank)[_HEAD]


def _row_size(config: ModelConfig) -> float:
    size: float = config.initializer_range * config.hidden_size**0.5
    return size


def _pair_up(first_P: Tensor, second_P: Tensor, is_interleaved: bool) -> Tensor:
    return torch.stack([first_P, second_P], dim=-1 if is_interleaved else 0).flatten()
