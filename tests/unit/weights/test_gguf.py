"""GGUF files: what is written is read back, foreign layouts too, and damage is one clear error."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moestro.errors import CheckpointError, ConfigError
from moestro.gguf_file import GgufFile
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.model import Transformer
from moestro.model.rope_config import RopeConfig
from moestro.ops.quantize import Kind
from moestro.text.gguf_export import write_vocabulary
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer
from moestro.weights.export import save_model
from moestro.weights.gguf_config import read_config, write_config
from moestro.weights.gguf_export import save_gguf
from moestro.weights.gguf_names import find_spot, hf_names
from moestro.weights.load import load_model, open_weights
from moestro.weights.names import pieces
from moestro.weights.quantize import Reader

# Rows of whole groups, so that nothing falls back to floats.
WHOLE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 16,
}
YARN = RopeConfig(
    theta=50000.0, kind="yarn", factor=40.0, original_max_position_embeddings=16,
    mscale=0.707, mscale_all_dim=0.707,
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"q_lora_rank": 5},
    "tied": {"q_lora_rank": 5, "tie_word_embeddings": True},
    "groups": {"q_lora_rank": 5, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5},
    "version 2": {"q_lora_rank": 5, "model_type": "deepseek_v2", "topk_method": "greedy"},
    "stretched": {"q_lora_rank": 5, "rope": YARN},
    "all dense": {"q_lora_rank": 5, "first_k_dense_replace": 2},
    "budget": {
        "q_lora_rank": 5,
        "min_experts_per_tok": 1,
        "budget": BudgetConfig(fractions=(0.0, 1.0), thresholds=((-0.25, -0.75),)),
    },
    "whole groups": WHOLE,
}
Build = Callable[..., Transformer]


def write(folder: Path, model: Transformer, kind: Kind | None = None, **options: Any) -> Path:
    plain = folder / "plain"
    plain.mkdir(exist_ok=True)
    save_model(model, plain)
    path = folder / "model.gguf"
    vocabulary = options.pop("vocabulary", {})
    save_gguf(Reader(*open_weights(plain)), path, kind, vocabulary, name="tiny", **options)
    return path


def logits(model: Transformer) -> torch.Tensor:
    tokens_BS = torch.arange(12).view(1, 12) % model.config.vocab_size
    with torch.no_grad():
        return model.logits(model(tokens_BS))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn(["def one(two):\n    return 12345\n", "caf\u00e9 \u4e2d\u6587 x  = 1\n"] * 9, 280)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_written_file_is_the_model(tmp_path: Path, tiny_model: Build, shape: str) -> None:
    model = tiny_model(**SHAPES[shape])
    found = load_model(write(tmp_path, model))
    expected = {
        key: value for key, value in model.state_dict().items() if not key.startswith("mtp.")
    }
    assert set(found.state_dict()) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found.state_dict()[key], value), key
    assert comparable(found.config) == comparable(model.config)


def comparable(config: ModelConfig) -> ModelConfig:
    """Return a shape without what a file without a tokenizer, or without groups, does not keep."""
    one_group = {"topk_group": 1, "n_group": 1} if config.topk_group == config.n_group else {}
    return dataclasses.replace(config, bos_token_id=None, eos_token_id=None, **one_group)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_codes_in_a_file_are_those_of_a_folder(
    tmp_path: Path, tiny_model: Build, kind: Kind
) -> None:
    from moestro.weights.quantize import save_quantized

    path = write(tmp_path, tiny_model(**WHOLE), kind)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_quantized(Reader(*open_weights(tmp_path / "plain")), folder, kind)
    (config, theirs), (_, ours) = open_weights(path), open_weights(folder)
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    num_codes = 0
    for piece in pieces(config, is_absorbed=True):
        shape = piece.shape(state[piece.key])
        a, b = theirs.stored(piece.hf_name, shape), ours.stored(piece.hf_name, shape)
        assert torch.equal(a.read(), b.read().float()), piece.hf_name
        if a.read_codes and b.read_codes:
            num_codes += 1
            assert torch.equal(a.read_codes().codes, b.read_codes().codes), piece.hf_name
    # Four experts, a shared one and a dense layer; two times attention; the head.
    assert num_codes == 3 * (4 + 1 + 1) + 2 * 6 + 1


def test_mtp_modules_stay_behind(tmp_path: Path, tiny_model: Build) -> None:
    model = tiny_model(q_lora_rank=5, num_nextn_predict_layers=1)
    found = load_model(write(tmp_path, model))
    assert found.config.num_nextn_predict_layers == 0
    assert torch.equal(logits(found), logits(model))


def test_queries_without_compression_are_told_as_compressed_ones(
    tmp_path: Path, tiny_model: Build, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    found = load_model(write(tmp_path, model))
    assert found.config.q_lora_rank == model.config.hidden_size
    assert "without q_lora_rank" in caplog.text
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-3)


def test_rotary_pairs_become_neighbors(tmp_path: Path, tiny_model: Build) -> None:
    model = tiny_model(q_lora_rank=5, qk_rope_head_dim=4, rope_interleave=False)
    found = load_model(write(tmp_path, model))
    assert found.config.rope_interleave
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"n_shared_experts": 0}, "n_shared_experts"),
        (
            {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "n_group": 2},
            "group_limited_greedy",
        ),
        ({"rope": dataclasses.replace(YARN, mscale=1.0)}, "mscale"),
        ({"rope": dataclasses.replace(YARN, truncate=False)}, "truncate"),
    ],
)
def test_a_shape_that_llama_cpp_has_no_word_for_is_refused(
    tmp_path: Path, tiny_model: Build, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        write(tmp_path, tiny_model(q_lora_rank=5, **changes))


def test_yarn_is_written_in_llama_cpps_convention() -> None:
    from tests.unit.weights.conftest import build_config

    found = write_config(build_config(rope=YARN))
    assert found["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.0707)
    assert found["deepseek2.rope.scaling.factor"] == 40.0
    assert found["deepseek2.rope.dimension_count"] == 2
    assert found["deepseek2.expert_gating_func"] == 2


def test_weights_that_version_2_normalizes_are_not_scaled_by_llama_cpp_either(
    tmp_path: Path, tiny_model: Build
) -> None:
    version_2 = {"q_lora_rank": 5, "model_type": "deepseek_v2", "topk_method": "greedy"}
    model = tiny_model(norm_topk_prob=True, routed_scaling_factor=2.5, **version_2)
    assert write_config(model.config)["deepseek2.expert_weights_scale"] == 1.0
    assert torch.equal(logits(load_model(write(tmp_path, model))), logits(model))


def test_every_name_maps_back_to_itself() -> None:
    from tests.unit.weights.conftest import build_config

    for rank in (None, 4):
        for is_absorbed in (False, True):
            for piece in pieces(build_config(q_lora_rank=rank), is_absorbed):
                assert piece.hf_name in hf_names(find_spot(piece.hf_name).tensor, 4)


def test_an_older_file_keeps_kv_b_whole_and_head_sizes_unabsorbed(
    tmp_path: Path, tiny_model: Build
) -> None:
    model = tiny_model(q_lora_rank=5)
    path = rewrite(write(tmp_path, model), tmp_path / "old.gguf", _unabsorb(model))
    assert torch.equal(logits(load_model(path)), logits(model))


def test_a_bias_that_a_file_leaves_out_is_zero(tmp_path: Path, tiny_model: Build) -> None:
    def drop(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        del tensors["blk.1.exp_probs_b.bias"]

    path = rewrite(write(tmp_path, tiny_model(q_lora_rank=5)), tmp_path / "new.gguf", drop)
    bias = load_model(path).state_dict()["layers.1.mlp.gate.e_score_correction_bias"]
    assert torch.equal(bias, torch.zeros(4))


def test_mtp_modules_in_a_file_are_left_out_with_a_warning(
    tmp_path: Path, tiny_model: Build, caplog: pytest.LogCaptureFixture
) -> None:
    def add_module(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        metadata["deepseek2.nextn_predict_layers"] = 1
        metadata["deepseek2.block_count"] += 1
        tensors["blk.2.nextn.enorm.weight"] = np.ones(12, np.float32)

    def add_layer(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.2.attn_norm.weight"] = np.ones(12, np.float32)

    model = tiny_model(q_lora_rank=5)
    path = write(tmp_path, model)
    loaded = load_model(rewrite(path, tmp_path / "mtp.gguf", add_module))
    assert torch.equal(logits(loaded), logits(model))
    assert "1 tensors of MTP modules are left out" in caplog.text
    with pytest.raises(CheckpointError, match=r"holds model\.layers\.2\.input_layernorm"):
        load_model(rewrite(path, tmp_path / "more.gguf", add_layer))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m, t: m.update({"general.architecture": "llama"}), "'llama': Moestro reads"),
        (lambda m, t: m.pop("deepseek2.embedding_length"), "lacks deepseek2.embedding_length"),
        (lambda m, t: m.update({"deepseek2.embedding_length": 4_000_000_000}), "expected at most"),
        (lambda m, t: m.update({"deepseek2.block_count": 1_000_000}), "block_count is 1000000"),
        (lambda m, t: m.update({"deepseek2.expert_count": 99}), "expert_count is 99, but"),
        (
            lambda m, t: m.update(
                {"deepseek2.expert_gating_func": 1, "deepseek2.expert_weights_scale": 2.5}
            ),
            "expert_weights_scale is 2.5 and expert_weights_norm is true",
        ),
        (lambda m, t: m.update({"deepseek2.rope.scaling.type": "linear"}), "rope type is 'linear'"),
        (lambda m, t: m.update({"deepseek2.rope.freq_base": float("nan")}), "a finite number"),
        (lambda m, t: m.update({"moestro.budget": "[1"}), "a value has the wrong type"),
        (lambda m, t: t.pop("blk.0.attn_norm.weight"), "lacks model.layers.0.input_layernorm"),
        (
            lambda m, t: t.update({"blk.0.attn_norm.weight": np.ones(5, np.float32)}),
            r"blk.0.attn_norm.weight has shape \[5\], expected \[12\]",
        ),
        (lambda m, t: t.update({"more": np.ones(5, np.float32)}), "holds more, for which"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(
    tmp_path: Path, tiny_model: Build, edit: Any, words: str
) -> None:
    path = rewrite(write(tmp_path, tiny_model(q_lora_rank=5)), tmp_path / "new.gguf", edit)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_scale_that_is_no_number_is_named(tmp_path: Path, tiny_model: Build) -> None:
    path = write(tmp_path, tiny_model(**WHOLE), "int4")
    file = GgufFile(path)
    content = bytearray(path.read_bytes())
    start = file.tensors["blk.0.attn_output.weight"].start
    content[start : start + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"attn_output\.weight holds a scale"):
        load_model(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A file with everything in it, not to be changed."""
    from tests.unit.weights.conftest import build_model

    size = tokenizer.vocab_size
    model = build_model(**SHAPES["budget"] | {"vocab_size": size, "rope": YARN})
    vocabulary = write_vocabulary(tokenizer, size, "{{ messages }}")
    return write(tmp_path_factory.mktemp("fuzz"), model, "int8", vocabulary=vocabulary)


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_flipped_bytes_are_an_error_or_a_model(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    first = min(place.start for place in GgufFile(whole).tensors.values())
    # Most of the header are tokens; what follows them says more.
    region = data.draw(st.sampled_from([(0, 2000), (first - 6000, first), (0, len(content))]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(region[0], region[1] - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    _assert_harmless(whole.with_name("flipped.gguf"), bytes(content))


@given(share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_an_error(whole: Path, share: float) -> None:
    content = whole.read_bytes()
    cut = content[: int(share * (len(content) - 40))]
    assert _assert_harmless(whole.with_name("cut.gguf"), cut)


def _assert_harmless(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    complaint = ""
    try:
        load_model(path)
        Tokenizer.load(path)
    except CheckpointError as error:
        complaint = str(error)
        assert complaint.startswith(str(path))
        assert "\n" not in complaint
    return complaint


def _unabsorb(model: Transformer) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    def edit(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        for i in range(2):
            del tensors[f"blk.{i}.attn_k_b.weight"], tensors[f"blk.{i}.attn_v_b.weight"]
            whole = model.state_dict()[f"layers.{i}.self_attn.kv_b_proj.weight"]
            tensors[f"blk.{i}.attn_kv_b.weight"] = whole.numpy()
        for side in ("key", "value"):
            length = metadata.pop(f"deepseek2.attention.{side}_length_mla")
            metadata[f"deepseek2.attention.{side}_length"] = length

    return edit


def rewrite(
    path: Path, new: Path, edit: Callable[[dict[str, Any], dict[str, np.ndarray]], object]
) -> Path:
    """Write a file of plain numbers anew with something changed."""
    file = GgufFile(path)
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("GGUF")}
    tensors = {
        name: file.bytes_of(name).view(np.float32).reshape(place.shape)
        for name, place in file.tensors.items()
    }
    edit(metadata, tensors)
    writer = gguf.GGUFWriter(new, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return new


def test_the_configuration_alone_is_read_without_weights(whole: Path) -> None:
    config = read_config(GgufFile(whole))
    assert config.rope == YARN
    assert config.budget.thresholds == ((-0.25, -0.75),)
