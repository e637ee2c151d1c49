"""Same weights in, same logits out as transformers, through real folders and in both directions."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)

from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.weights.export import save_model
from moestro.weights.load import load_model
from tests.builders import (
    fill_randomly,
    linear_budget,
    random_model,
    random_tokens,
    tiny_config,
)

# Where a model has no shared experts, transformers makes them with no elements.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
MAX_DIFFERENCE = 1e-4

BASE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.7,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


def yarn(**changes: Any) -> dict[str, Any]:
    stretch = {"factor": 4.0, "original_max_position_embeddings": 32}
    turns = {"beta_fast": 32.0, "beta_slow": 1.0}
    return {"rope_type": "yarn", "rope_theta": 5000.0, **stretch, **turns, **changes}


# Each factor's first level is the base's.
FACTORS: dict[str, list[dict[str, Any]]] = {
    "query": [{"q_lora_rank": None}, {"q_lora_rank": 12}],
    "groups": [
        {"n_group": 1, "topk_group": 1},
        {"n_group": 2, "topk_group": 1},
        {"n_group": 4, "topk_group": 2},
    ],
    "rope": [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": yarn(mscale=1.0, mscale_all_dim=1.0)},
        {"rope_parameters": yarn(mscale=1.0, mscale_all_dim=0.5)},
        {"rope_parameters": yarn()},
        {"rope_parameters": yarn(factor=8.0, mscale_all_dim=0.7)},
    ],
    "shared": [{"n_shared_experts": 1}, {"n_shared_experts": 0}, {"n_shared_experts": 2}],
    "bias": [{"attention_bias": False}, {"attention_bias": True}],
    "head": [{"tie_word_embeddings": False}, {"tie_word_embeddings": True}],
    "pairs": [{"rope_interleave": True}, {"rope_interleave": False}],
    "values": [{"v_head_dim": 10}, {"v_head_dim": 6}, {"v_head_dim": 14}],
    "dense": [
        {"first_k_dense_replace": 1},
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 3},
    ],
    "weights": [{"norm_topk_prob": True}, {"norm_topk_prob": False}],
    "mtp": [{"num_nextn_predict_layers": 0}, {"num_nextn_predict_layers": 1}],
}


def one_at_a_time() -> dict[str, dict[str, Any]]:
    plain = {key: value for levels in FACTORS.values() for key, value in levels[0].items()}
    grid = {"plain": plain}
    for name, levels in FACTORS.items():
        for number, level in enumerate(levels[1:], start=1):
            grid[f"{name} {number}"] = plain | level
    return grid


def mixtures(count: int) -> dict[str, dict[str, Any]]:
    draw = random.Random(0)
    grid = {}
    for number in range(count):
        levels = [draw.choice(choices) for choices in FACTORS.values()]
        grid[f"mixture {number}"] = {k: v for level in levels for k, v in level.items()}
    return grid


GRID = one_at_a_time() | mixtures(24)
VERSION_2: dict[str, dict[str, Any]] = {
    "greedy": {"topk_method": "greedy"},
    "greedy, whatever the groups": {"topk_method": "greedy", "n_group": 4, "topk_group": 1},
    "groups": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    "compressed queries, biases": {"q_lora_rank": 12, "attention_bias": True},
    "yarn": {"rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707)},
    "two shared experts": {"n_shared_experts": 2, "first_k_dense_replace": 0},
}


@pytest.mark.parametrize("changes", GRID.values(), ids=GRID.keys())
def test_a_folder_that_transformers_wrote_gives_its_logits_here(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    # transformers never holds an MTP module's weights, so it cannot write them.
    theirs = build_theirs(changes | {"num_nextn_predict_layers": 0})
    theirs.save_pretrained(tmp_path)
    assert_equal_logits(theirs, load_model(tmp_path))


@pytest.mark.parametrize("changes", GRID.values(), ids=GRID.keys())
def test_a_folder_that_we_wrote_gives_our_logits_in_transformers(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    ours = random_model(ModelConfig.from_hf({"model_type": "deepseek_v3", **BASE, **changes}))
    save_model(ours, tmp_path)
    theirs = load_theirs(DeepseekV3ForCausalLM, tmp_path, ours.config)
    assert_equal_logits(theirs, ours)


@pytest.mark.parametrize("changes", VERSION_2.values(), ids=VERSION_2.keys())
def test_version_2_gives_the_logits_of_transformers_both_ways(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    settings = BASE | {"topk_method": "greedy", "norm_topk_prob": False} | changes
    theirs = DeepseekV2ForCausalLM(DeepseekV2Config(**settings)).eval()
    fill_randomly(theirs, seed=1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.topk_method == settings["topk_method"]
    assert_equal_logits(theirs, ours)
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours")
    assert_equal_logits(load_theirs(DeepseekV2ForCausalLM, tmp_path / "ours", ours.config), ours)


@pytest.mark.parametrize("num_chosen", [1, 3])
def test_version_2_normalizes_or_scales_weights_as_deepseek_published_it(
    num_chosen: int, tmp_path: Path
) -> None:
    settings = BASE | {"topk_method": "greedy", "num_experts_per_tok": num_chosen}
    theirs = DeepseekV2ForCausalLM(DeepseekV2Config(**settings)).eval()
    fill_randomly(theirs, seed=1)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.norm_topk_prob
    assert ours.config.routed_scaling_factor == 1.7
    # Theirs scales always. DeepSeek's modeling_deepseek.py, from which no published checkpoint
    # asks for it, does so only where it does not normalize, as it does two experts or more.
    if num_chosen > 1:
        for layer in theirs.model.layers[1:]:
            layer.mlp.gate.register_forward_hook(normalize)
    assert_equal_logits(theirs, ours)


def normalize(_module: Any, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
    logits, weights_TK, experts_TK = output
    return logits, weights_TK / weights_TK.sum(dim=-1, keepdim=True), experts_TK


def test_a_model_with_a_budget_runs_in_transformers_with_all_its_experts(tmp_path: Path) -> None:
    config = tiny_config(moe_intermediate_size=12)
    ours = random_model(config.with_budget(linear_budget(config)))
    save_model(ours, tmp_path)
    assert_equal_logits(load_theirs(DeepseekV3ForCausalLM, tmp_path, ours.config), ours)


def test_both_spellings_of_a_configuration_give_one_model() -> None:
    stretch = yarn(mscale=1.0, mscale_all_dim=0.5)
    published = {key: value for key, value in stretch.items() if not key.startswith("rope_")}
    first = BASE | {"model_type": "deepseek_v3", "rope_parameters": stretch, "num_mtp_layers": 1}
    second = BASE | {
        "model_type": "deepseek_v3",
        "rope_theta": 5000.0,
        "rope_scaling": {"type": "yarn", **published},
        "num_nextn_predict_layers": 1,
    }
    assert ModelConfig.from_hf(first) == ModelConfig.from_hf(second)
    default = {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}
    plain = BASE | {"model_type": "deepseek_v3"}
    assert ModelConfig.from_hf(plain | default) == ModelConfig.from_hf(
        plain | {"rope_theta": 777.0, "rope_scaling": None}
    )


def build_theirs(changes: dict[str, Any]) -> DeepseekV3ForCausalLM:
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**(BASE | changes))).eval()
    fill_randomly(model, seed=2)
    return model


def load_theirs(kind: type, folder: Path, config: ModelConfig) -> Any:
    model, report = kind.from_pretrained(  # type: ignore[attr-defined]
        folder, dtype=torch.float32, output_loading_info=True
    )
    ahead = f"model.layers.{config.num_hidden_layers}."
    assert all(name.startswith(ahead) for name in report["unexpected_keys"])
    assert bool(report["unexpected_keys"]) == bool(config.num_nextn_predict_layers)
    missing = [name for name in report["missing_keys"] if model.get_parameter(name).numel()]
    assert not missing
    return model.eval()


def assert_equal_logits(theirs: Any, ours: Transformer) -> None:
    tokens_BS = random_tokens(ours.config, 2, 48)
    with torch.no_grad():
        expected: Tensor = theirs(tokens_BS).logits
        assert expected.std() > 0.1
        for path in ("naive", "absorbed"):
            logits = ours.logits(ours(tokens_BS, path=path))
            assert (logits - expected).abs().max() <= MAX_DIFFERENCE
