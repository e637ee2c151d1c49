"""An engine's settings: what cannot be meant is refused by its name, before any model is read."""

from typing import Any

import pytest

from moestro import settings
from moestro.engine.config import EngineConfig
from moestro.errors import ConfigError


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"dtype": "float8"}, "engine.dtype: 'float8' is not one of auto, checkpoint, float32"),
        ({"draft": {"mode": "fast"}}, "engine.draft.mode: 'fast' is not one of auto, always, off"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_batch_tokens": 31}, "max_batch_tokens is 31: each of max_batch 32"),
        ({"max_stall": 1.0}, "max_stall is 1.0"),
        ({"burst_s": 0.2}, "burst_s is 0.2"),
        ({"burst_s": -0.01}, "burst_s is -0.01"),
        ({"max_length": 0}, "max_length is 0"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"watchdog_s": 0.5}, "watchdog_s is 0.5"),
        ({"queue": {"max_requests": -1}}, "engine.queue.max_requests is -1"),
        ({"queue": {"max_tokens": -1}}, "engine.queue.max_tokens is -1"),
        ({"cache": {"block_size": 24}}, "block_size is 24"),
        ({"cache": {"num_tokens": 63}}, "num_tokens is 63"),
        ({"pressure": {"steps": 1}}, "steps is 1"),
        ({"pressure": {"low": 0.5, "high": 0.5}}, "low is 0.5 and high 0.5"),
        ({"pressure": {"dwell_s": -1.0}}, "dwell_s is -1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_name(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.build(EngineConfig, table, "engine.")
    assert words in str(caught.value)


def test_the_bounds_themselves_are_taken() -> None:
    table = {
        "max_batch": 1,
        "max_batch_tokens": 1,
        "burst_s": 0.1,
        "watchdog_s": 1.0,
        "cache": {"block_size": 16, "num_tokens": 16},
        "pressure": {"steps": 2, "low": 0.0, "dwell_s": 0.0},
    }
    config = settings.build(EngineConfig, table)
    assert (config.cache.block_size, config.pressure.low) == (16, 0.0)
