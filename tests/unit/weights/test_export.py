"""Saved = loaded, in every type and layout; transformers reads what we write, and we read its."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import logging as transformers_logging

from moestro.errors import StorageError
from moestro.model.model import Transformer
from moestro.ops.pack import quantize_blocks
from moestro.weights import export
from moestro.weights.export import save_model
from moestro.weights.load import load_config, load_model
from moestro.weights.names import pieces

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
PLAIN = [torch.float32, torch.bfloat16, torch.float16]


def _assert_same(ours: Transformer, theirs: Transformer) -> None:
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def test_a_saved_model_loads_bit_by_bit(
    tmp_path: Path, tiny_model: Any, variant: dict[str, Any]
) -> None:
    model = tiny_model(**variant)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    _assert_same(loaded, model)
    assert loaded.config == load_config(tmp_path)
    assert loaded.config.budget == model.config.budget
    assert not loaded.training
    tokens = torch.arange(8).view(1, 8)
    assert torch.equal(loaded.logits(loaded(tokens)), model.logits(model(tokens)))


@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("max_shard_bytes", [1000, 10**9])
def test_each_type_and_any_number_of_shards_loads_bit_by_bit(
    tmp_path: Path, tiny_model: Any, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    model = tiny_model(dtype=dtype, num_nextn_predict_layers=1)
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or max_shard_bytes > 1000
    loaded = load_model(tmp_path, dtype=None)
    _assert_same(loaded, model)
    assert loaded.compute_dtype == dtype


@pytest.mark.parametrize("dtype", PLAIN)
def test_saving_in_another_type_rounds_weights_and_keeps_the_selection_bias(
    tmp_path: Path, tiny_model: Any, dtype: torch.dtype
) -> None:
    model = tiny_model()
    save_model(model, tmp_path, dtype=dtype)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == str(dtype)[6:]
    state, stored = model.state_dict(), load_file(tmp_path / "model.safetensors")
    bias = "layers.1.mlp.gate.e_score_correction_bias"
    assert stored[f"model.{bias}"].dtype == torch.float32
    assert torch.equal(stored[f"model.{bias}"], state[bias])
    assert torch.equal(stored["lm_head.weight"], state["lm_head.weight"].to(dtype))
    loaded = load_model(tmp_path, dtype=torch.bfloat16)
    assert loaded.state_dict()[bias].dtype == torch.float32
    assert loaded.norm.weight.dtype == torch.bfloat16


def test_fp8_blocks_load_within_the_resolution_of_the_format(
    tmp_path: Path, tiny_model: Any
) -> None:
    shape = {"hidden_size": 144, "moe_intermediate_size": 130, "num_nextn_predict_layers": 1}
    model = tiny_model(**shape)
    save_model(model, tmp_path, fp8=True, max_shard_bytes=300_000)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    loaded, original = load_model(tmp_path).state_dict(), model.state_dict()
    for key, value in original.items():
        is_packed = not torch.equal(loaded[key], value)
        assert is_packed == ("proj" in key and "eh_proj" not in key), key
        # Blocks of this model hold numbers up to about 5: steps of 5 / 448 / 1024 at the least.
        assert bool(((loaded[key] - value).abs() <= value.abs() / 16 + 1e-4).all()), key


@pytest.mark.parametrize("max_shard_bytes", [1000, 10**9])
def test_each_matrix_is_rounded_to_fp8_once(
    tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch, max_shard_bytes: int
) -> None:
    rounded: list[int] = []

    def count(weight_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rounded.append(weight_ND.data_ptr())
        return quantize_blocks(weight_ND)

    monkeypatch.setattr(export, "quantize_blocks", count)
    model = tiny_model(num_nextn_predict_layers=1)
    save_model(model, tmp_path, fp8=True, max_shard_bytes=max_shard_bytes)
    assert len(rounded) == sum(piece.is_quantizable for piece in pieces(model.config))
    assert len(rounded) == len(set(rounded))


def test_the_copies_of_embedding_and_head_stand_beside_each_mtp_module(
    tmp_path: Path, tiny_model: Any
) -> None:
    model = tiny_model(num_nextn_predict_layers=2)
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for layer in (2, 3):
        assert torch.equal(
            stored[f"model.layers.{layer}.embed_tokens.weight"], model.embed_tokens.weight
        )
        assert torch.equal(
            stored[f"model.layers.{layer}.shared_head.head.weight"], model.lm_head.weight
        )


def test_a_generation_config_that_is_there_is_left_alone(tmp_path: Path, tiny_model: Any) -> None:
    save_model(tiny_model(), tmp_path)
    path = tmp_path / "generation_config.json"
    assert json.loads(path.read_text()) == {"bos_token_id": 0, "eos_token_id": 1}
    path.write_text('{"temperature": 0.6}')
    save_model(tiny_model(), tmp_path)
    assert path.read_text() == '{"temperature": 0.6}'


def test_the_same_model_makes_the_same_bytes(tmp_path: Path, tiny_model: Any) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_model(tiny_model(), tmp_path / name, max_shard_bytes=2000)
    first = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}


def test_a_folder_that_cannot_be_written_is_a_storage_error(
    tmp_path: Path, tiny_model: Any
) -> None:
    with pytest.raises(StorageError, match=r"model\.safetensors: No such file"):
        save_model(tiny_model(), tmp_path / "nowhere")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_transformers_loads_ours_with_nothing_missing_or_mismatched(
    tmp_path: Path, tiny_model: Any, variant: dict[str, Any]
) -> None:
    model = tiny_model(**variant)
    save_model(model, tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    empty = {name for name, value in theirs.state_dict().items() if value.numel() == 0}
    assert set(report["missing_keys"]) <= empty
    assert not report["mismatched_keys"]
    extra = model.config.num_hidden_layers
    assert all(name.startswith("model.layers.") for name in report["unexpected_keys"])
    assert all(int(name.split(".")[2]) >= extra for name in report["unexpected_keys"])
    back = tmp_path / "back"
    theirs.save_pretrained(back)
    loaded, original = load_model(back).state_dict(), model.state_dict()
    assert set(loaded) == {key for key in original if not key.startswith("mtp.")}
    assert all(torch.equal(value, original[key]) for key, value in loaded.items())


def test_transformers_loads_what_is_written_without_code_that_its_source_came_with(
    tmp_path: Path, tiny_model: Any
) -> None:
    save_model(tiny_model(), tmp_path)
    path = tmp_path / "config.json"
    code = {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": code}))
    model = load_model(tmp_path)
    (tmp_path / "written").mkdir()
    save_model(model, tmp_path / "written")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "written", trust_remote_code=True)
    assert torch.equal(theirs.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("kind", ["deepseek_v3", "deepseek_v2"])
@pytest.mark.parametrize("dtype", PLAIN)
def test_a_model_that_transformers_made_loads_bit_by_bit(
    tmp_path: Path, tiny_config: Any, kind: str, dtype: torch.dtype
) -> None:
    method = "noaux_tc" if kind == "deepseek_v3" else "greedy"
    shape = tiny_config(model_type=kind, topk_method=method, q_lora_rank=4).to_hf()
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=dtype)
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    stored = {
        name: value
        for path in tmp_path.glob("*.safetensors")
        for name, value in load_file(path).items()
    }
    ours = load_model(tmp_path, dtype=None).state_dict()
    layer = "layers.1.mlp.experts"
    gate_up = [stored[f"model.{layer}.3.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(ours[f"{layer}.gate_up_proj"][3], torch.cat(gate_up))
    assert torch.equal(ours[f"{layer}.down_proj"][3], stored[f"model.{layer}.3.down_proj.weight"])
    for key, value in ours.items():
        if f"model.{key}" in stored:
            assert torch.equal(value, stored[f"model.{key}"].to(value.dtype)), key
    assert ours["norm.weight"].dtype == dtype


def test_mtp_modules_that_transformers_left_out_are_dropped_with_a_warning(
    tmp_path: Path, tiny_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    table = {"fractions": [0.0, 1.0], "thresholds": [[-0.25, -0.75], [-0.125, -0.5]]}
    save_model(tiny_model(), tmp_path)
    path = tmp_path / "config.json"
    changes = {"num_nextn_predict_layers": 1, "min_experts_per_tok": 1, "budget": table}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with caplog.at_level(logging.WARNING):
        config = load_model(tmp_path).config
    assert "holds no weights of its 1 MTP modules" in caplog.text
    assert config.num_nextn_predict_layers == 0
    assert config.budget.thresholds == ((-0.25, -0.75),)
