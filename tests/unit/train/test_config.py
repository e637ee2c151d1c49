"""A run's settings are resolved from preset and file, and those that cannot train are refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from moestro import settings
from moestro.errors import ConfigError
from moestro.train.config import (
    BalanceConfig,
    CheckpointConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    build_run_config,
)


def test_a_file_that_names_no_shape_means_the_demos() -> None:
    config = build_run_config({"data": {}})
    assert config.preset == "demo"
    assert config.model.n_routed_experts == 16
    assert config.tokenizer.vocab_size == config.model.vocab_size == 2048


def test_a_file_lies_over_its_preset_and_the_tokenizer_follows_the_model() -> None:
    config = build_run_config(
        {"data": {}, "preset": "small", "model": {"vocab_size": 999, "hidden_size": 640}}
    )
    assert (config.model.hidden_size, config.model.num_hidden_layers) == (640, 8)
    assert config.tokenizer.vocab_size == 999
    own = build_run_config({"data": {}, "tokenizer": {"vocab_size": 500}})
    assert (own.tokenizer.vocab_size, own.model.vocab_size) == (500, 2048)


def test_a_resolved_configuration_survives_its_toml(tmp_path: Path) -> None:
    config = build_run_config(
        {"data": {}, "train": {"balance": {"method": "sign"}, "optimizer": {"kind": "adamw"}}}
    )
    path = tmp_path / "config.toml"
    path.write_text(settings.to_toml(config))
    assert settings.build(RunConfig, settings.load(path)) == config


@pytest.mark.parametrize(
    ("message", "tables"),
    [
        (r"train\.optimizer\.leraning_rate: unknown setting\. hint: learning_rate",
         {"train": {"optimizer": {"leraning_rate": 1.0}}}),
        (r"model\.n_experts: unknown setting", {"model": {"n_experts": 3}}),
        (r"train\.steps: 'many' is str, expected int", {"train": {"steps": "many"}}),
        (r"train\.balance\.method: 'luck' is not one of proportional, sign",
         {"train": {"balance": {"method": "luck"}}}),
        (r"preset: 'huge' is not one of demo", {"preset": "huge"}),
        (r"preset: 3 is not a name", {"preset": 3}),
        (r"model: 7 is not a table", {"model": 7}),
        (r"model\.num_experts_per_tok is 17, but there are 16 experts",
         {"model": {"num_experts_per_tok": 17}}),
        (r"model\.qk_rope_head_dim is 7: rotary pairs", {"model": {"qk_rope_head_dim": 7}}),
        (r"train\.seq_len is 4096, but\s+model\.max_position_embeddings is 99",
         {"train": {"seq_len": 4096}, "model": {"max_position_embeddings": 99}}),
        (r"train\.seq_len is 2, but model\.num_nextn_predict_layers is 2: a sequence",
         {"train": {"seq_len": 2}, "model": {"num_nextn_predict_layers": 2}}),
        (r"tokenizer\.vocab_size is 4096, but\s+model\.vocab_size is 999",
         {"tokenizer": {"vocab_size": 4096}, "model": {"vocab_size": 999}}),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(message: str, tables: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run_config({"data": {}} | tables)


@pytest.mark.parametrize(
    ("message", "kind", "values"),
    [
        ("steps is 0", TrainConfig, {"steps": 0}),
        ("seq_len is -1", TrainConfig, {"seq_len": -1}),
        ("batch_size is 0", TrainConfig, {"batch_size": 0}),
        ("log_every is 0", TrainConfig, {"log_every": 0}),
        ("micro_batch_size is 5: it must divide", TrainConfig, {"micro_batch_size": 5}),
        ("warmup_share is 1.5", ScheduleConfig, {"warmup_share": 1.5}),
        ("final_ratio is -1", ScheduleConfig, {"final_ratio": -1}),
        ("above 1: shorten", ScheduleConfig, {"warmup_share": 0.6, "decay_share": 0.6}),
        ("keep is 0", CheckpointConfig, {"keep": 0}),
        ("every_steps is 0", CheckpointConfig, {"every_steps": 0}),
        ("micro_batch_size is -4", TrainConfig, {"micro_batch_size": -4}),
        ("micro_batch_size is 0", TrainConfig, {"micro_batch_size": 0}),
        ("batch_size is 1000000000: .* at most 1048576", TrainConfig, {"batch_size": 10**9}),
        ("seed is -1", TrainConfig, {"seed": -1}),
        ("seed is 4294967296: it must lie between 0 and", TrainConfig, {"seed": 2**32}),
        ("mtp_weight is -1", TrainConfig, {"mtp_weight": -1.0}),
        ("mtp_weight is inf: .* finite", TrainConfig, {"mtp_weight": math.inf}),
        ("evaluate_every is -1", TrainConfig, {"evaluate_every": -1}),
        ("rate is -0.1", BalanceConfig, {"rate": -0.1}),
        ("rate is inf: .* finite", BalanceConfig, {"rate": math.inf}),
        ("weight is -0.1", BalanceConfig, {"weight": -0.1}),
        ("every_s is -1", CheckpointConfig, {"every_s": -1.0}),
    ],
)
def test_a_size_that_makes_no_run_is_refused(
    message: str, kind: type, values: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**values)
