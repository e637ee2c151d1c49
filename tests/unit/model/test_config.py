"""A shape survives its `config.json` without loss, and an impossible one is refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import ConfigError
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.rope_config import RopeConfig
from tests.builders import TINY, linear_budget, tiny_config

RAW: dict[str, Any] = {"model_type": "deepseek_v3"} | {
    key: value for key, value in TINY.items() if key != "min_experts_per_tok"
}
YARN = RopeConfig(
    theta=5000.0,
    kind="yarn",
    factor=4.0,
    original_max_position_embeddings=32,
    mscale=1.0,
    mscale_all_dim=0.5,
)
SHAPES: dict[str, ModelConfig] = {
    "plain": tiny_config(),
    "all unlike the defaults": tiny_config(
        n_shared_experts=2,
        n_group=2,
        topk_group=2,
        norm_topk_prob=False,
        routed_scaling_factor=2.5,
        q_lora_rank=7,
        attention_bias=True,
        rope=YARN,
        rope_interleave=False,
        rms_norm_eps=1e-5,
        num_nextn_predict_layers=1,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=3,
        eos_token_id=0,
    ),
    "budget": tiny_config().with_budget(linear_budget(tiny_config())),
    "version 2": tiny_config(
        model_type="deepseek_v2", topk_method="group_limited_greedy", n_group=2, topk_group=2
    ),
}
IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "vocab_size": {"vocab_size": 0},
    "hidden_size": {"hidden_size": 0},
    "intermediate_size": {"intermediate_size": 0},
    "moe_intermediate_size": {"moe_intermediate_size": 0},
    "num_hidden_layers": {"num_hidden_layers": 0, "first_k_dense_replace": 0},
    "num_attention_heads": {"num_attention_heads": 0},
    "n_routed_experts": {"n_routed_experts": 0},
    "kv_lora_rank": {"kv_lora_rank": 0},
    "qk_nope_head_dim": {"qk_nope_head_dim": 0},
    "v_head_dim": {"v_head_dim": 0},
    "max_position_embeddings": {"max_position_embeddings": 0},
    "q_lora_rank": {"q_lora_rank": 0},
    "qk_rope_head_dim": {"qk_rope_head_dim": 5},
    "first_k_dense_replace": {"first_k_dense_replace": 3},
    "num_experts_per_tok": {"num_experts_per_tok": 9},
    "n_group": {"n_group": 3},
    "topk_group": {"topk_group": 2},
    "topk_group leaves": {"n_group": 4, "topk_group": 1},
    "a group is scored by its best 2": {"n_group": 8, "topk_group": 8},
    "topk_method": {"topk_method": "greedy"},
    "min_experts_per_tok": {"min_experts_per_tok": 5},
    "min_experts_per_tok is 0": {"min_experts_per_tok": 0},
    "each row of thresholds": {"budget": BudgetConfig(fractions=(0, 1), thresholds=((-0.5,),))},
    "2 rows of thresholds": {"budget": BudgetConfig(fractions=(0,), thresholds=((-0.5,),) * 2)},
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_a_shape_comes_back_from_json_as_it_was_written(config: ModelConfig) -> None:
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_keys_that_we_do_not_know_are_kept() -> None:
    config = ModelConfig.from_hf(RAW | {"ep_size": 1, "pad_token_id": 7})
    assert config.extra == {"ep_size": 1, "pad_token_id": 7}
    written = config.to_hf()
    assert {key: written[key] for key in config.extra} == config.extra
    assert ModelConfig.from_hf(written) == config


def test_a_key_that_is_ours_is_never_kept_twice() -> None:
    raw = RAW | {"num_mtp_layers": 1, "rope_parameters": {"rope_theta": 5.0}, "dtype": "bfloat16"}
    config = ModelConfig.from_hf(raw | {"num_local_experts": 16})
    assert (config.num_nextn_predict_layers, config.n_routed_experts) == (1, 16)
    assert (config.rope.theta, config.extra) == (5.0, {})


@pytest.mark.parametrize(("message", "changes"), IMPOSSIBLE.items(), ids=IMPOSSIBLE.keys())
def test_an_impossible_shape_is_refused_by_the_name_of_its_field(
    message: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("model_type is 'llama'", {"model_type": "llama"}),
        ("model_type is None", {"model_type": None}),
        ("hidden_act is 'gelu'", {"hidden_act": "gelu"}),
        ("scoring_func is 'softmax'", {"scoring_func": "softmax"}),
        ("moe_layer_freq is 2", {"moe_layer_freq": 2}),
        ("num_key_value_heads is 1", {"num_key_value_heads": 1}),
        ("rope type is 'linear'", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("rope theta is 1", {"rope_theta": 1.0}),
        ("rope theta is inf", {"rope_theta": math.inf}),
        ("rope factor is 0.5", {"rope_scaling": {"type": "yarn", "factor": 0.5}}),
        ("rope factor is inf", {"rope_scaling": {"type": "yarn", "factor": math.inf}}),
        ("rope beta_fast is 0", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 0}}),
        (
            "rope original_max_position_embeddings is 0",
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 0,
                }
            },
        ),
        ("rope mscale is -1", {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": -1.0}}),
        ("kv_lora_rank is missing", {"kv_lora_rank": None}),
        ("deepseek_v2", {"model_type": "deepseek_v2", "topk_method": "noaux_tc"}),
    ],
)
def test_a_model_that_we_cannot_compute_is_refused(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_hf(RAW | changes)


@given(name=st.sampled_from(sorted(set(TINY) - {"min_experts_per_tok", "first_k_dense_replace"})))
def test_a_needed_key_that_is_missing_is_named(name: str) -> None:
    raw = {key: value for key, value in RAW.items() if key != name}
    if name == "max_position_embeddings":
        assert ModelConfig.from_hf(raw).max_position_embeddings == 4096
        return
    with pytest.raises(ConfigError, match=f"^{name} is missing"):
        ModelConfig.from_hf(raw)


def test_yarn_without_a_factor_stretches_to_the_whole_context() -> None:
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 16}
    rope = ModelConfig.from_hf(RAW | {"rope_scaling": scaling}).rope
    assert (rope.kind, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 16)


def test_of_several_ends_of_text_the_first_is_taken() -> None:
    assert ModelConfig.from_hf(RAW | {"eos_token_id": [4, 5]}).eos_token_id == 4


def test_version_2_defaults_to_greedy_choice_and_plain_weights() -> None:
    config = ModelConfig.from_hf(RAW | {"model_type": "deepseek_v2"})
    assert (config.topk_method, config.norm_topk_prob) == ("greedy", False)
    assert not config.has_balance_bias
    assert config.to_hf()["scoring_func"] == "softmax"


def test_what_follows_from_a_shape_is_derived() -> None:
    config = tiny_config(num_nextn_predict_layers=2)
    assert config.qk_head_dim == 10
    assert config.num_moe_layers == 3
    assert config.fewest_experts == 2
    assert tiny_config(min_experts_per_tok=None).fewest_experts == 4
    assert not config.has_budget
    assert config.with_budget(linear_budget(config)).has_budget


def test_several_end_tokens_are_all_written_back() -> None:
    assert ModelConfig.from_hf(RAW | {"eos_token_id": [4, 5]}).to_hf()["eos_token_id"] == [4, 5]


def test_kimi_k2_is_read_as_the_architecture_that_it_has() -> None:
    assert ModelConfig.from_hf(RAW | {"model_type": "kimi_k2"}).model_type == "deepseek_v3"
