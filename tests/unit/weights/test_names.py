"""The name table covers a model exactly once."""

from collections import Counter
from typing import Any

import torch

from moestro.weights.names import aliases, mtp_pieces, pieces


def test_the_pieces_fill_every_element_of_the_state_exactly_once(
    tiny_model: Any, variant: dict[str, Any]
) -> None:
    model = tiny_model(**variant)
    counts = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    for piece in pieces(model.config):
        counts[piece.key][piece.index] += 1
    assert all(bool((count == 1).all()) for count in counts.values())


def test_no_hugging_face_name_stands_in_the_table_twice(
    tiny_config: Any, variant: dict[str, Any]
) -> None:
    config = tiny_config(**variant)
    counts = Counter(piece.hf_name for piece in pieces(config) + aliases(config))
    assert set(counts.values()) == {1}


def test_mtp_module_k_is_layer_l_plus_k(tiny_config: Any) -> None:
    names = {
        piece.hf_name: piece.key for piece in mtp_pieces(tiny_config(num_nextn_predict_layers=2))
    }
    assert names["model.layers.3.shared_head.norm.weight"] == "mtp.1.norm.weight"
    assert names["model.layers.2.eh_proj.weight"] == "mtp.0.eh_proj.weight"
    own = "mtp.0.block.self_attn.o_proj.weight"
    assert names["model.layers.2.self_attn.o_proj.weight"] == own


def test_gate_rows_come_before_up_rows(tiny_config: Any) -> None:
    table = {piece.hf_name: piece.index for piece in pieces(tiny_config())}
    assert table["model.layers.0.mlp.gate_proj.weight"] == (slice(0, 10),)
    assert table["model.layers.0.mlp.up_proj.weight"] == (slice(10, 20),)
    assert table["model.layers.1.mlp.experts.3.up_proj.weight"] == (3, slice(6, 12))


def test_only_the_matrices_that_deepseek_quantizes_are_marked(tiny_config: Any) -> None:
    config = tiny_config(q_lora_rank=5, attention_bias=True, num_nextn_predict_layers=1)
    kept = {piece.key for piece in pieces(config) if not piece.is_quantizable}
    layers = ("layers.0", "layers.1", "mtp.0.block")
    in_layers = {
        "input_layernorm.weight", "post_attention_layernorm.weight",
        "self_attn.q_a_layernorm.weight", "self_attn.kv_a_layernorm.weight",
        "self_attn.q_a_proj.bias", "self_attn.kv_a_proj_with_mqa.bias", "self_attn.o_proj.bias",
    }  # fmt: skip
    expected = {f"{layer}.{name}" for layer in layers for name in in_layers}
    gate = ("mlp.gate.weight", "mlp.gate.e_score_correction_bias")
    expected |= {f"{layer}.{name}" for layer in layers[1:] for name in gate}
    expected |= {f"mtp.0.{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "norm")}
    assert kept == expected | {"embed_tokens.weight", "norm.weight", "lm_head.weight"}
