"""A prepared model taken apart for the native stack: which module's weights play which part.

Next: ops/stack.py.
"""

from typing import Any

import torch

from moestro.model.attention import Attention, softmax_scale
from moestro.model.block import Block
from moestro.model.config import ModelConfig
from moestro.model.feedforward import FeedForward
from moestro.model.gate import choice_rule
from moestro.model.linear import Linear, RMSNorm
from moestro.model.model import Transformer, attention_factor
from moestro.model.moe import MoE
from moestro.model.mtp import MTPModule
from moestro.ops.kernels import PackedExperts
from moestro.ops.layer_parts import GateParts, LayerParts, Matrix, MtpParts, Norm, StackParts
from moestro.ops.native import NativeKernels
from moestro.ops.stack import NativeStack


def build_stack(model: Transformer, kernels: NativeKernels) -> NativeStack:
    """Describe all layers of a prepared model, MTP modules' last."""
    config = model.config
    gates = model.gates()
    parts = [_layer(block, None) for block in model.layers if isinstance(block, Block)]
    modules = [module for module in model.mtp if isinstance(module, MTPModule)]
    parts += [_layer(module.block, _mtp(module)) for module in modules]
    assert model.packed_head is not None
    whole = StackParts(
        shape=_shape(config, model),
        layers=parts,
        final_norm=_norm(model.norm),
        embeddings_VD=model.embed_tokens.weight,
        head=model.packed_head.weights,
        frequencies_P=model.frequencies_P,
        fractions_N=gates[0].fractions_N if gates and config.has_budget else None,
    )
    return NativeStack(kernels, whole, _cache_dtype(parts[0]))


def _cache_dtype(parts: LayerParts) -> torch.dtype:
    """Return float32 for weights in float32; bfloat16 latents are as good as any others."""
    return torch.float32 if parts.latent.weights.kind == "float32" else torch.bfloat16


def _shape(config: ModelConfig, model: Transformer) -> dict[str, Any]:
    return {
        "hidden": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "nope": config.qk_nope_head_dim,
        "rotary": config.qk_rope_head_dim,
        "value": config.v_head_dim,
        "latent": config.kv_lora_rank,
        "softmax_scale": softmax_scale(config),
        "is_interleaved": config.rope_interleave,
        "rotary_factor": attention_factor(config),
    } | choice_rule(config)


def _mtp(module: MTPModule) -> MtpParts:
    assert module.eh_proj.packed is not None
    eh_proj = module.eh_proj.packed.weights
    return MtpParts(_norm(module.enorm), _norm(module.hnorm), eh_proj, _norm(module.norm))


def _layer(block: Block, mtp: MtpParts | None) -> LayerParts:
    attention, mlp = block.self_attn, block.mlp
    gate, routed, shared = _feed_forward(mlp)
    is_compressed = attention.config.q_lora_rank is not None
    expansion = attention.packed_up
    assert expansion is not None
    return LayerParts(
        input_norm=_norm(block.input_layernorm),
        query_a=_matrix(attention.q_a_proj) if is_compressed else None,
        query_norm=_norm(attention.q_a_layernorm) if is_compressed else None,
        query=_matrix(_query(attention)),
        latent=_matrix(attention.kv_a_proj_with_mqa),
        latent_norm=_norm(attention.kv_a_layernorm),
        w_uk=expansion.w_uk.weights,
        w_uv=expansion.w_uv.weights,
        out=_matrix(attention.o_proj),
        post_norm=_norm(block.post_attention_layernorm),
        gate=gate,
        routed=routed,
        shared=shared,
        mtp=mtp,
    )


def _query(attention: Attention) -> Linear:
    return attention.q_proj if attention.config.q_lora_rank is None else attention.q_b_proj


def _feed_forward(
    mlp: MoE | FeedForward,
) -> tuple[GateParts | None, PackedExperts | None, PackedExperts | None]:
    if isinstance(mlp, FeedForward):
        return None, None, _packed(mlp)
    gate = mlp.gate
    assert gate.packed is not None
    thresholds_N = gate.thresholds_N if gate.thresholds_N.numel() else None
    parts = GateParts(gate.packed.weights, gate.e_score_correction_bias, thresholds_N)
    shared = None if mlp.shared_experts is None else _packed(mlp.shared_experts)
    assert mlp.experts.packed is not None
    return parts, mlp.experts.packed[1], shared


def _packed(module: FeedForward) -> PackedExperts:
    assert module.packed is not None
    return module.packed[1]


def _norm(module: RMSNorm) -> Norm:
    return Norm(module.weight, module.eps)


def _matrix(module: Linear) -> Matrix:
    assert module.packed is not None
    return Matrix(module.packed.weights, module.bias)
