"""What a backend reads of a folder before its weights, and what it says of a damaged one."""

import json
from pathlib import Path
from typing import Any

import pytest

from moestro.api.sampling import Sampling
from moestro.backends.checkpoint import load_checkpoint
from moestro.errors import CheckpointError
from moestro.weights.export import write_generation
from tests.builders import tiny_config
from tests.unit.backends.local_parts import tokenizer


def write(folder: Path, **changes: Any) -> Path:
    raw = tiny_config(vocab_size=320).to_hf() | changes
    (folder / "config.json").write_text(json.dumps(raw))
    tokenizer().save(folder)
    return folder


def test_a_folder_without_a_template_is_talked_to_in_paragraphs(tmp_path: Path) -> None:
    found = load_checkpoint(write(tmp_path))
    assert found.stop_ids == {tokenizer().eos_id}
    assert not found.has_own_template
    assert "\n\nUser:" in found.template.stops
    assert found.card("x", 64).id == "x"


def test_its_own_template_is_used(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    found = load_checkpoint(tmp_path)
    assert found.card("x", 64).has_chat_template
    assert found.template.stops == ()


def test_every_token_that_is_said_to_end_a_text_ends_it(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=[5, 6, 999_999])
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert load_checkpoint(tmp_path).stop_ids == {tokenizer().eos_id, 5, 6, 7}


def test_its_makers_recommendation_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    assert load_checkpoint(tmp_path).sampling == Sampling()
    recommend(tmp_path, do_sample=True, temperature=0.6, top_p=None, top_k=-1, min_p=0.1)
    found = load_checkpoint(tmp_path)
    assert found.sampling == Sampling(temperature=0.6, min_p=0.1)
    assert found.card("x", 64).default_sampling == {"temperature": 0.6, "min_p": 0.1}


def test_what_we_write_ourselves_recommends_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    write_generation(tiny_config(vocab_size=320), tmp_path)
    assert load_checkpoint(tmp_path).card("x", 64).default_sampling == {}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": "hot"}, "generation_config.json: temperature is 'hot'"),
        ({"top_k": 2.5}, "top_k is 2.5: it must be a number"),
        ({"top_p": 2}, "top_p is 2: it must be a number over 0 up to 1"),
    ],
)
def test_a_recommendation_that_cannot_be_followed_is_named(
    tmp_path: Path, knobs: dict[str, Any], message: str
) -> None:
    write(tmp_path)
    recommend(tmp_path, **knobs)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def recommend(folder: Path, **knobs: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(knobs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"rope_scaling": 3}, "wrong type"),
        ({"vocab_size": 100}, "the tokenizer has"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write(tmp_path, **changes))


def test_a_model_without_experts_has_no_limits_of_them(tmp_path: Path) -> None:
    card = load_checkpoint(write(tmp_path, first_k_dense_replace=2)).card("x", 64)
    assert (card.num_moe_layers, card.fewest_experts, card.most_experts) == (0, 0, 0)
