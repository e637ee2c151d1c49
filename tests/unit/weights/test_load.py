"""Loading is exact: whatever is missing, left over or mis-shaped is named in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moestro.errors import CheckpointError
from moestro.weights.export import save_model
from moestro.weights.load import load_config, load_model

BUDGET_MODEL = {"num_nextn_predict_layers": 1}


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Any) -> Path:
    """A folder with a tiny model in one file."""
    save_model(tiny_model(**BUDGET_MODEL), tmp_path)
    return tmp_path


def _change(folder: Path, edit: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    copy = {name: value.clone() for name, value in tensors.items()}
    edit(copy)
    save_file(copy, path)


def _configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _rejects(folder: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_missing_tensor_is_named(saved: Path) -> None:
    _change(saved, lambda tensors: tensors.pop("model.layers.1.mlp.experts.2.up_proj.weight"))
    _rejects(saved, r"lacks model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight")


def test_many_missing_tensors_are_counted_and_a_few_named(saved: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name and "layers.1" in name]:
            del tensors[name]

    _change(saved, drop)
    _rejects(saved, r"lacks 12 tensors \(model\.layers\.1\.mlp\.experts\.0\.gate_proj\.weight, ")


def test_a_surplus_tensor_is_named(saved: Path) -> None:
    _change(saved, lambda tensors: tensors.update({"model.layers.1.what": torch.ones(2)}))
    _rejects(saved, r"holds model\.layers\.1\.what, for which config\.json has no place")


def test_a_misshapen_tensor_is_named_with_both_shapes(saved: Path) -> None:
    _change(saved, lambda tensors: tensors.update({"model.norm.weight": torch.ones(13)}))
    _rejects(saved, r"model\.norm\.weight has shape \[13\], expected \[12\]")


def test_a_misshapen_copy_of_the_embedding_is_named(saved: Path) -> None:
    name = "model.layers.2.embed_tokens.weight"
    _change(saved, lambda tensors: tensors.update({name: torch.ones(20, 1)}))
    _rejects(saved, r"layers\.2\.embed_tokens\.weight has shape \[20, 1\]")


def test_a_tensor_of_integers_is_named_with_its_type(saved: Path) -> None:
    _change(saved, lambda tensors: tensors.update({"model.norm.weight": torch.ones(12).int()}))
    _rejects(saved, r"model\.norm\.weight is of type I32")


def test_copies_of_embedding_and_head_are_optional(saved: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.2.embed_tokens.weight"]
        del tensors["model.layers.2.shared_head.head.weight"]

    _change(saved, drop)
    assert len(load_model(saved).mtp) == 1


def test_an_mtp_module_that_is_there_in_part_is_an_error(saved: Path) -> None:
    _change(saved, lambda tensors: tensors.pop("model.layers.2.eh_proj.weight"))
    _rejects(saved, r"lacks model\.layers\.2\.eh_proj\.weight")


def test_empty_tensors_and_saved_rotary_tables_are_ignored(saved: Path) -> None:
    surplus = {
        "model.layers.1.mlp.surplus.weight": torch.ones(0, 12),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1),
    }
    _change(saved, lambda tensors: tensors.update(surplus))
    assert load_model(saved).config.num_nextn_predict_layers == 1


def test_a_tied_head_may_be_written_but_must_equal_the_embedding(
    tmp_path: Path, tiny_model: Any
) -> None:
    save_model(tiny_model(tie_word_embeddings=True), tmp_path)

    def write_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    _change(tmp_path, write_head)
    assert load_model(tmp_path).lm_head is None
    _change(tmp_path, lambda tensors: tensors["lm_head.weight"].neg_())
    _rejects(tmp_path, r"lm_head\.weight is not the embedding")


def test_a_missing_scale_is_named(tmp_path: Path, tiny_model: Any) -> None:
    save_model(tiny_model(), tmp_path, fp8=True)
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    _change(tmp_path, lambda tensors: tensors.pop(name))
    _rejects(tmp_path, rf"is of type F8_E4M3, but {name} is missing")


def test_a_misshapen_scale_is_named(tmp_path: Path, tiny_model: Any) -> None:
    save_model(tiny_model(), tmp_path, fp8=True)
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    _change(tmp_path, lambda tensors: tensors.update({name: torch.ones(1, 2)}))
    _rejects(tmp_path, rf"{name} has shape \[1, 2\], expected \[1, 1\]")


def test_a_scale_without_its_fp8_matrix_is_surplus(saved: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    _change(saved, lambda tensors: tensors.update({name: torch.ones(1, 1)}))
    _rejects(saved, f"holds {name}")


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (None, "is of type F8_E4M3"),
        ("fp8", "quant_method is 'fp8'"),
        ({"quant_method": "awq"}, "quant_method is 'awq'"),
        ({"quant_method": "fp8"}, "weight_block_size is None"),
        (
            {"quant_method": "fp8", "weight_block_size": [0, 128]},
            r"weight_block_size is \[0, 128\]",
        ),
        ({"quant_method": "fp8", "weight_block_size": ["1", 2]}, "weight_block_size"),
    ],
)
def test_unknown_quantization_is_an_error(
    tmp_path: Path, tiny_model: Any, quantization: object, words: str
) -> None:
    save_model(tiny_model(), tmp_path, fp8=True)
    _configure(tmp_path, quantization_config=quantization)
    _rejects(tmp_path, words)


def test_another_block_size_is_honored(tmp_path: Path, tiny_model: Any) -> None:
    model = tiny_model()
    save_model(model, tmp_path, fp8=True)
    _configure(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [4, 8]})
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    scale = torch.arange(1.0, 5.0).view(4, 1)

    def spread(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.endswith("_scale_inv")]:
            rows, columns = tensors[key.removesuffix("_scale_inv")].shape
            tensors[key] = torch.ones(-(-rows // 4), -(-columns // 8))
        tensors[name] = torch.ones(tensors[name].shape).to(torch.float8_e4m3fn)
        tensors[name + "_scale_inv"] = scale

    _change(tmp_path, spread)
    loaded = load_model(tmp_path).state_dict()["layers.0.self_attn.kv_b_proj.weight"]
    assert torch.equal(loaded, scale.repeat_interleave(4, 0).expand(16, 6))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["deepseek_v3"]}, "wrong type"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "12"}, "expected a whole number"),
        ({"hidden_size": 12.0}, "hidden_size"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"eos_token_id": []}, "wrong type"),
        ({"rope_scaling": "yarn"}, "wrong type"),
        (
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0}},
            "original_max_position_embeddings is 0",
        ),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ({"budget": [1]}, "wrong type"),
        ({"budget": {"fractions": [0, 1], "thresholds": [[0, -1]]}}, "rows of thresholds"),
        ({"budget": {"fractions": [0], "thresholds": [[0.5]]}}, "a threshold is 0.5.*calibrate"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_names_the_file(
    saved: Path, changes: dict[str, Any], words: str
) -> None:
    _configure(saved, **changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_config(saved)
    assert str(saved / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="nothing: no such folder"):
        load_config(tmp_path / "nothing")


def test_a_configuration_of_another_size_is_an_error(saved: Path) -> None:
    _configure(saved, hidden_size=14)
    _rejects(saved, r"has shape \[20, 12\], expected \[20, 14\]")
    _configure(saved, hidden_size=12, num_hidden_layers=3)
    _rejects(saved, r"holds 6 tensors \(model\.layers\.2\.enorm\.weight")


def test_a_longer_file_is_an_error(saved: Path) -> None:
    with (saved / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    _rejects(saved, r"model\.safetensors: damaged")


def test_loading_tells_how_far_it_is(saved: Path) -> None:
    told: list[float] = []
    load_model(saved, on_progress=told.append)
    assert told[0] == 0
    assert told == sorted(told)
    assert len(told) > 1
    assert told[-1] < 1
