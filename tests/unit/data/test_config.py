"""Settings of the data: each impossible one is refused by name."""

from typing import Any

import pytest

from moestro import settings
from moestro.data.config import DataConfig, TokenizerConfig
from moestro.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"paths": ()}, "paths is empty"),
        ({"paths": ("",)}, "paths is empty"),
        ({"paths": ("a", "b"), "domains": ("x",)}, "domains has 1 names for 2 paths"),
        ({"held_out": 0.0}, "held_out is 0.0"),
        ({"held_out": 0.6}, "held_out is 0.6"),
        ({"fim_rate": 1.5}, "fim_rate is 1.5"),
        ({"fim_bytes": 3}, "fim_bytes is 3"),
        ({"min_bytes": 0}, "min_bytes is 0"),
        ({"max_document_bytes": 100}, "max_document_bytes is 100"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_an_impossible_data_setting_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 100}, "vocab_size is 100"),
        ({"path": ""}, "path is empty"),
        ({"sample_bytes": 0}, "sample_bytes is 0"),
    ],
)
def test_an_impossible_tokenizer_setting_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(**values)


@pytest.mark.parametrize("config", [DataConfig(paths=("a", "b"), max_bytes=9), TokenizerConfig()])
def test_settings_survive_a_toml_file(config: DataConfig | TokenizerConfig) -> None:
    assert settings.build(type(config), settings.to_tables(config)) == config
