"""Counts made from a shape alone are those of the real model."""

from typing import Any

import pytest

from moestro.model.cache import ContiguousCache
from moestro.model.config import ModelConfig
from moestro.model.count import (
    active_parameters,
    cache_numbers_per_token,
    count_parameters,
    prefill_flops,
    training_flops_per_token,
)
from moestro.model.model import Transformer
from moestro.model.presets import PRESETS, dense_twin
from tests.builders import tiny_config

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "query compression": {"q_lora_rank": 5},
    "biases": {"q_lora_rank": 5, "attention_bias": True},
    "biases, no compression": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "no shared experts": {"n_shared_experts": 0},
    "mtp": {"num_nextn_predict_layers": 2, "n_shared_experts": 2},
    "all sparse": {"first_k_dense_replace": 0},
    "all dense": {"first_k_dense_replace": 2},
    "version 2": {"model_type": "deepseek_v2", "topk_method": "greedy"},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_parameters_are_those_of_the_real_model(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    sizes = {name: value.numel() for name, value in Transformer(config).state_dict().items()}
    mtp = sum(size for name, size in sizes.items() if name.startswith("mtp."))
    routed = sum(
        size for name, size in sizes.items() if ".experts." in name and not name.startswith("mtp.")
    )
    count = count_parameters(config)
    assert (count.total, count.mtp) == (sum(sizes.values()) - mtp, mtp)
    assert count.routed_experts == routed
    assert count.embedding == sizes["embed_tokens.weight"]
    assert count.head == sizes.get("lm_head.weight", 0)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_active_parameters_leave_out_idle_experts_and_the_lookup(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    count = count_parameters(config)
    rows = 0 if config.tie_word_embeddings else (config.vocab_size - 1) * config.hidden_size
    num_sparse = config.num_hidden_layers - config.first_k_dense_replace
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    for experts in (2, 2.5, 8):
        idle = num_sparse * (config.n_routed_experts - experts) * expert
        assert active_parameters(config, experts) == pytest.approx(count.total - rows - idle)


def test_version_3_has_671_billion_parameters_37_billion_of_them_active() -> None:
    config = ModelConfig(**_preset("v3"))
    assert count_parameters(config).total == pytest.approx(671e9, rel=0.01)
    # The paper rounds to 37 G; without the lookup, which is no arithmetic, it is a little less.
    assert round(active_parameters(config, 8) / 1e9) == 37


def test_a_training_step_takes_six_operations_for_each_active_weight() -> None:
    config = ModelConfig(**_preset("small"))
    mtp_free = ModelConfig(**(_preset("small") | {"num_nextn_predict_layers": 0}))
    weights = 6 * active_parameters(mtp_free, 4)
    assert training_flops_per_token(mtp_free, 1, 4) == pytest.approx(weights, rel=0.001)
    assert training_flops_per_token(mtp_free, 1024, 4) > weights
    assert training_flops_per_token(config, 256, 4) > training_flops_per_token(mtp_free, 256, 4)
    assert training_flops_per_token(config, 256, 4) > training_flops_per_token(config, 256, 2)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_prompt_takes_two_operations_for_each_weight_of_its_layers_and_one_head(
    is_tied: bool,
) -> None:
    config = tiny_config(tie_word_embeddings=is_tied)
    count = count_parameters(config)
    # The head's numbers are the embedding's where they are tied.
    layers = active_parameters(config, config.num_experts_per_tok) - count.embedding
    layers -= 0 if is_tied else config.hidden_size
    numbers_of_a_pair = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    pairs = config.num_hidden_layers * (1 + 2 + 3)
    expected = 2 * (3 * layers + count.embedding + pairs * numbers_of_a_pair)
    assert prefill_flops(config, 3) == expected


def test_a_training_step_of_tied_weights_takes_as_much_as_one_of_untied() -> None:
    tied, untied = (tiny_config(tie_word_embeddings=is_tied) for is_tied in (True, False))
    assert training_flops_per_token(tied, 8, 4) == training_flops_per_token(untied, 8, 4)


def test_the_cache_holds_the_latent_and_its_rotated_part_and_nothing_else() -> None:
    config = tiny_config()
    assert cache_numbers_per_token(config) == 2 * (8 + 4)
    cache = ContiguousCache(config, capacity=10)
    held = sum(value.numel() for value in vars(cache).values() if hasattr(value, "numel"))
    assert held == 10 * cache_numbers_per_token(config)


@pytest.mark.parametrize("num_experts", [2, 3, 4])
def test_a_dense_twin_is_as_large_as_the_active_part(num_experts: int) -> None:
    config = ModelConfig(**(_preset("demo") | {"first_k_dense_replace": 0}))
    twin = dense_twin(config, num_experts)
    gates = config.num_hidden_layers * config.n_routed_experts * (config.hidden_size + 1)
    assert active_parameters(twin, 0) == active_parameters(config, num_experts) - gates
    assert count_parameters(twin).routed_experts == 0


def _preset(name: str) -> dict[str, Any]:
    tables = dict(PRESETS[name])
    tables.pop("rope", None)
    return tables
