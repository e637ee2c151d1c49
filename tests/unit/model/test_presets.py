"""Every shape that has a name can be built."""

import pytest
import torch

from moestro import settings
from moestro.errors import ConfigError
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.model.presets import PRESETS, dense_twin, preset_tables


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_and_survives_its_config_json(name: str) -> None:
    config = settings.build(ModelConfig, preset_tables(name))
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("name", ["demo", "small", "v2-lite"])
def test_a_preset_is_a_model(name: str) -> None:
    config = settings.build(ModelConfig, preset_tables(name))
    with torch.device("meta"):
        model = Transformer(config)
    assert len(model.layers) == config.num_hidden_layers
    assert len(model.gates()) == config.num_moe_layers


def test_the_default_takes_two_to_four_of_sixteen_experts() -> None:
    config = settings.build(ModelConfig, preset_tables("demo"))
    assert config.n_routed_experts == 16
    assert (config.fewest_experts, config.num_experts_per_tok) == (2, 4)
    assert (config.n_shared_experts, config.num_nextn_predict_layers) == (1, 1)


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"'dmeo' is not one of demo, small"):
        preset_tables("dmeo")


def test_changing_what_a_preset_gave_leaves_the_preset_alone() -> None:
    preset_tables("demo")["vocab_size"] = 1
    assert PRESETS["demo"]["vocab_size"] == 2048


def test_a_dense_twin_has_no_gate_and_differs_in_its_feed_forward_only() -> None:
    config = settings.build(ModelConfig, preset_tables("small"))
    twin = dense_twin(config, 2)
    changed = {key for key, value in vars(config).items() if getattr(twin, key) != value}
    # The published MTP modules are sparse, so that a dense model has none.
    mtp = {"num_nextn_predict_layers"}
    assert changed == {"first_k_dense_replace", "intermediate_size"} | mtp
    assert twin.intermediate_size == 3 * config.moe_intermediate_size
    assert twin.num_moe_layers == 0
