"""Quantized checkpoints: the documented layout, read back as the numbers that were rounded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moestro.errors import CheckpointError
from moestro.ops.quantize import Kind, dequantize, quantize
from moestro.weights.export import save_model
from moestro.weights.load import load_model, open_weights
from moestro.weights.quantize import Reader, save_quantized
from tests.unit.weights.conftest import VARIANTS

KINDS: tuple[Kind, ...] = ("int8", "int4")
O_PROJ = "model.layers.0.self_attn.o_proj.weight"
UP = "model.layers.1.mlp.experts.2.up_proj.weight"


def convert(source: Path, dest: Path, kind: Kind, **options: Any) -> Path:
    dest.mkdir()
    save_quantized(Reader(*open_weights(source)), dest, kind, **options)
    return dest


def make(tmp_path: Path, model: Any, kind: Kind, **options: Any) -> Path:
    (tmp_path / "plain").mkdir()
    save_model(model, tmp_path / "plain")
    return convert(tmp_path / "plain", tmp_path / kind, kind, **options)


def change(folder: Path, edit: Any) -> None:
    tensors = {name: value.clone() for name, value in read_all(folder).items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def read_all(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rejects(folder: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_quantized_folder_loads_as_the_rounded_model(
    tmp_path: Path, tiny_model: Any, kind: Kind, variant: str
) -> None:
    model = tiny_model(**VARIANTS[variant])
    found = load_model(make(tmp_path, model, kind)).state_dict()
    for key, value in model.state_dict().items():
        error = (found[key] - value).abs().max()
        is_head = key == "lm_head.weight" or key.startswith("mtp.")
        coarse = 0.1 if kind == "int4" and not is_head else 0.005
        assert error <= coarse * value.abs().max(), key


def test_names_types_and_shapes_are_the_documented_ones(tmp_path: Path, tiny_model: Any) -> None:
    folder = make(tmp_path, tiny_model(num_nextn_predict_layers=1), "int4")
    tensors = read_all(folder)
    # 2 heads of 4 key and 4 value numbers, a latent of 6, a width of 12.
    shapes = {
        "model.layers.0.self_attn.k_b_proj": (2 * 6, 1),
        "model.layers.0.self_attn.v_b_proj": (2 * 4, 1),
        "model.layers.0.self_attn.o_proj": (12, 1),
        "model.layers.1.mlp.experts.3.down_proj": (12, 1),
    }
    for name, (rows, groups) in shapes.items():
        assert tensors[f"{name}.weight"].shape == (rows, 16 * groups), name
        assert tensors[f"{name}.weight"].dtype == torch.uint8
        assert tensors[f"{name}.weight_scale"].shape == (rows, groups)
        assert tensors[f"{name}.weight_scale"].dtype == torch.float16
    for name in ("lm_head", "model.layers.2.eh_proj", "model.layers.2.self_attn.o_proj"):
        assert tensors[f"{name}.weight"].dtype == torch.int8, name
    for name in ("model.embed_tokens", "model.norm", "model.layers.1.mlp.gate"):
        assert f"{name}.weight_scale" not in tensors
        assert tensors[f"{name}.weight"].dtype == torch.float32
    assert not [name for name in tensors if "kv_b_proj" in name or "shared_head.head" in name]
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "moestro", "version": 1, "format": "int4", "group_size": 32,
    }  # fmt: skip


def test_rows_of_k_b_are_latents_and_their_inputs_a_heads_keys(
    tmp_path: Path, tiny_model: Any
) -> None:
    model = tiny_model()
    tensors = read_all(make(tmp_path, model, "int8"))
    whole = model.state_dict()["layers.0.self_attn.kv_b_proj.weight"].view(2, 8, 6)
    name = "model.layers.0.self_attn.k_b_proj.weight"
    codes, scales = tensors[name].float(), tensors[f"{name}_scale"].float()
    for head, latent in ((0, 0), (1, 5)):
        row = (codes * scales)[head * 6 + latent, :4]
        torch.testing.assert_close(row, whole[head, :4, latent], rtol=0.01, atol=0.01)


def test_embeddings_and_norms_take_the_type_asked_for_and_the_gate_stays_float32(
    tmp_path: Path, tiny_model: Any
) -> None:
    tensors = read_all(make(tmp_path, tiny_model(), "int8", dtype=torch.bfloat16))
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert tensors["model.norm.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.1.mlp.gate.weight"].dtype == torch.float32
    assert tensors["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_codes_come_as_they_are_stored_and_floats_are_their_product(
    tmp_path: Path, tiny_model: Any, kind: Kind
) -> None:
    model = tiny_model()
    _, weights = open_weights(make(tmp_path, model, kind))
    value = model.state_dict()["layers.0.self_attn.o_proj.weight"]
    stored = weights.stored(O_PROJ, tuple(value.shape))
    assert stored.kind == kind
    assert stored.read_codes is not None
    made, expected = stored.read_codes(), quantize(value, kind)
    assert torch.equal(made.codes, expected.codes)
    assert torch.equal(made.scales, expected.scales)
    assert torch.equal(stored.read(), dequantize(made))


def test_shards_hold_what_one_file_does(tmp_path: Path, tiny_model: Any) -> None:
    model = tiny_model()
    whole = load_model(make(tmp_path, model, "int4")).state_dict()
    parts = convert(tmp_path / "plain", tmp_path / "parts", "int4", max_shard_bytes=900)
    assert len(list(parts.glob("model-*.safetensors"))) > 3
    assert all(
        torch.equal(whole[key], value) for key, value in load_model(parts).state_dict().items()
    )


@pytest.mark.parametrize("source", ["fp8", "int8"])
def test_a_quantized_checkpoint_can_be_quantized_further(
    tmp_path: Path, tiny_model: Any, source: str
) -> None:
    model = tiny_model()
    (tmp_path / "fp8").mkdir()
    save_model(model, tmp_path / "fp8", fp8=True)
    first = tmp_path / "fp8" if source == "fp8" else make(tmp_path, model, "int8")
    found = load_model(convert(first, tmp_path / "new", "int4")).state_dict()
    for key, value in model.state_dict().items():
        assert (found[key] - value).abs().max() <= 0.15 * value.abs().max(), key


def test_codes_of_the_kind_that_is_asked_for_stay_as_they_are(
    tmp_path: Path, tiny_model: Any
) -> None:
    first = make(tmp_path, tiny_model(), "int4")
    again = convert(first, tmp_path / "again", "int4")
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_a_number_that_is_not_finite_cannot_be_rounded(tmp_path: Path, tiny_model: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.layers[0].self_attn.o_proj.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"o_proj\.weight holds a number that is not finite"):
        make(tmp_path, model, "int8")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(f"{UP}_scale"), rf"{UP} is of type U8, but {UP}_scale is missing"),
        (lambda t: t.pop(UP), rf"lacks {UP}"),
        (lambda t: t.update({UP: t[UP][:, :8].clone()}), rf"{UP} has shape \[6, 8\], expected"),
        (lambda t: t.update({f"{UP}_scale": t[f"{UP}_scale"][1:].clone()}), rf"{UP}_scale has"),
        (lambda t: t.update({f"{UP}_scale": t[f"{UP}_scale"].float()}), "of type F32, exp"),
        (lambda t: t[f"{UP}_scale"].fill_(torch.inf), rf"{UP}_scale holds a scale that is not"),
        (lambda t: t.update({"model.x_scale": torch.ones(2)}), r"holds model\.x_scale, for which"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(12, dtype=torch.uint8)}),
            r"norm\.weight is of type U8",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_weight_is_one_line_that_names_it(
    tmp_path: Path, tiny_model: Any, edit: Any, words: str
) -> None:
    folder = make(tmp_path, tiny_model(), "int4")
    change(folder, edit)
    rejects(folder, words)


@pytest.mark.parametrize(
    "change_of", [{"version": 2}, {"group_size": 64}, {"format": "int3"}, {"quant_method": "gptq"}]
)
def test_another_layout_is_refused(
    tmp_path: Path, tiny_model: Any, change_of: dict[str, Any]
) -> None:
    folder = make(tmp_path, tiny_model(), "int4")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= change_of
    path.write_text(json.dumps(config))
    rejects(folder, str(next(iter(change_of.values()))))


def test_codes_without_an_announcement_are_refused(tmp_path: Path, tiny_model: Any) -> None:
    folder = make(tmp_path, tiny_model(), "int4")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    rejects(folder, "of type .*8, which config.json does not announce")
