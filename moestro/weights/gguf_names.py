"""Hugging Face names of weights <-> llama.cpp's for its `deepseek2` architecture, both ways.

Knows names, no file. Next: gguf_weights.py, gguf_export.py.
"""

import re
from typing import NamedTuple

from moestro.weights.names import EMBEDDING, HEAD

_WHOLE = {
    EMBEDDING: "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    HEAD: "output.weight",
}
_IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "self_attn.k_b_proj.weight": "attn_k_b.weight",
    "self_attn.v_b_proj.weight": "attn_v_b.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
# One tensor for all experts of a layer.
_OF_EXPERTS = {
    "gate_proj.weight": "ffn_gate_exps.weight",
    "up_proj.weight": "ffn_up_exps.weight",
    "down_proj.weight": "ffn_down_exps.weight",
}
_THEIRS = {theirs: own for own, theirs in (_WHOLE | _IN_LAYER).items()}
_THEIR_EXPERTS = {theirs: own for own, theirs in _OF_EXPERTS.items()}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(.+)")
_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")


class Spot(NamedTuple):
    """Where a weight is in a GGUF file: in a tensor, or in one expert's part of it."""

    tensor: str
    expert: int | None = None


def find_spot(hf_name: str) -> Spot:
    """Return where a model's weight is."""
    if hf_name in _WHOLE:
        return Spot(_WHOLE[hf_name])
    found = _LAYER.fullmatch(hf_name)
    assert found is not None, hf_name
    block, rest = f"blk.{found[1]}.", found[2]
    expert = _EXPERT.fullmatch(rest)
    if expert is not None:
        return Spot(block + _OF_EXPERTS[expert[2]], int(expert[1]))
    return Spot(block + _IN_LAYER[rest])


def hf_names(tensor: str, num_experts: int) -> list[str]:
    """Return the weights in a file's tensor; one of no known name keeps it."""
    if tensor in _THEIRS:
        return [_THEIRS[tensor]]
    found = _BLOCK.fullmatch(tensor)
    if found is None:
        return [tensor]
    layer, rest = f"model.layers.{int(found[1])}.", found[2]
    if rest in _THEIR_EXPERTS:
        own = _THEIR_EXPERTS[rest]
        return [f"{layer}mlp.experts.{e}.{own}" for e in range(num_experts)]
    return [layer + _THEIRS[rest]] if rest in _THEIRS else [tensor]


def layer_of(tensor: str) -> int | None:
    """Return which layer a file's tensor belongs to, if any."""
    found = _BLOCK.fullmatch(tensor)
    return None if found is None else int(found[1])
