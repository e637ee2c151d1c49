"""One model to serve, as its settings want it."""

import json
from pathlib import Path
from typing import Literal

import pytest

from moestro.cli.wiring import ServeConfig, build_backend
from tests.builders import tiny_config
from tests.unit.backends.local_parts import tokenizer


@pytest.mark.parametrize(("choice", "sampling"), [("auto", {"temperature": 0.6}), ("off", {})])
def test_a_models_own_sampling_can_be_turned_off(
    tmp_path: Path, choice: Literal["auto", "off"], sampling: dict[str, float]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(vocab_size=320).to_hf()))
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    tokenizer().save(tmp_path)
    backend = build_backend(ServeConfig(model=tmp_path, generation_config=choice))
    assert backend.cards()[0].default_sampling == sampling
