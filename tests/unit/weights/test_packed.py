"""A checkpoint loaded straight into packed weights holds what it holds when loaded as floats."""

import ctypes
import gc
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moestro import files
from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.request import EngineRequest, TokensEvent
from moestro.errors import CheckpointError
from moestro.model.attention import Attention
from moestro.model.experts import Experts
from moestro.model.feedforward import FeedForward
from moestro.model.linear import Linear
from moestro.model.model import Transformer
from moestro.model.prepare import prepare
from moestro.ops.choose import chosen_kernels
from moestro.ops.kernels import TorchKernels
from moestro.ops.panels import unpack, unpack_gate_up
from moestro.weights.export import save_model
from moestro.weights.gguf_export import save_gguf
from moestro.weights.load import load_model, open_weights
from moestro.weights.packed import holds_codes, load_packed
from moestro.weights.quantize import Reader, save_quantized
from tests.builders import random_model, random_tokens, tiny_config

KERNELS = TorchKernels()
CLEAR = Path("/proc/self/clear_refs")
CONFIGS = [
    {"num_nextn_predict_layers": 1, "q_lora_rank": 12},
    {"tie_word_embeddings": True, "attention_bias": True},
    {"n_shared_experts": 2, "first_k_dense_replace": 2},
]


def matrices(model: Transformer) -> dict[str, Tensor]:
    """Unpack all that is packed."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.packed is not None:
            found[name] = unpack(module.packed.weights)
        elif isinstance(module, Attention) and module.packed_up is not None:
            found[name + ".w_uk"] = unpack(module.packed_up.w_uk.weights)
            found[name + ".w_uv"] = unpack(module.packed_up.w_uv.weights)
        elif isinstance(module, Experts | FeedForward) and module.packed is not None:
            experts = module.packed[1]
            found[name + ".down"] = unpack(experts.down)
            found[name + ".gate_up"] = unpack_gate_up(experts.gate_up, experts.down.depth)
    assert model.packed_head is not None
    return found | {"head": unpack(model.packed_head.weights)}


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("changes", CONFIGS)
def test_codes_keep_their_bits(tmp_path: Path, kind: str, changes: dict[str, object]) -> None:
    assert kind == "int8" or kind == "int4"
    source, folder = tmp_path / "source", tmp_path / "codes"
    source.mkdir()
    folder.mkdir()
    save_model(random_model(tiny_config(**changes)), source)
    save_quantized(Reader(*open_weights(source)), folder, kind)
    found = load_packed(folder, KERNELS)
    expected = load_model(folder)
    prepare(expected, KERNELS, "float32")
    ours, theirs = matrices(found), matrices(expected)
    assert ours.keys() == theirs.keys()
    for name, matrix in ours.items():
        assert torch.equal(matrix, theirs[name]), name
    assert files.read_json(folder / "config.json")["quantization_config"]["format"] == kind


@pytest.mark.parametrize("changes", CONFIGS)
def test_plain_numbers_keep_their_values(tmp_path: Path, changes: dict[str, object]) -> None:
    model = random_model(tiny_config(**changes))
    save_model(model, tmp_path)
    progress: list[float] = []
    found = load_packed(tmp_path, KERNELS, on_progress=progress.append)
    tokens_BS = random_tokens(model.config, 1, 9)
    with torch.no_grad():
        logits = found.logits(found(tokens_BS))
        torch.testing.assert_close(logits, model.logits(model(tokens_BS)), atol=1e-4, rtol=1e-4)
    assert 0.5 < progress[-1] <= 1


@pytest.mark.skipif(not chosen_kernels().is_native, reason="built without a compiler")
@pytest.mark.parametrize("changes", CONFIGS)
def test_a_loaded_stack_generates_as_the_model_does(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    model = random_model(tiny_config(**changes))
    save_model(model, tmp_path)
    found = load_packed(tmp_path, chosen_kernels().kernels)
    request = EngineRequest(
        id="", prompt=(1, 2, 3), max_tokens=20, sampling=Sampling(temperature=0.0)
    )
    config = EngineConfig(max_batch=1, cache=CacheConfig(num_tokens=64))
    answers = [_generate(Engine(each, config), request) for each in (model, found)]
    assert found.stack is not None
    assert answers[0] == answers[1]


def _generate(engine: Engine, request: EngineRequest) -> list[int]:
    engine.submit(request)
    tokens: list[int] = []
    while engine.has_work:
        events = engine.step()
        told = [event for event in events if isinstance(event, TokensEvent)]
        tokens += [score.token_id for event in told for score in event.scores]
    return tokens


def test_a_checkpoint_can_be_rounded_as_it_is_read(tmp_path: Path) -> None:
    model = random_model(tiny_config(num_nextn_predict_layers=1))
    save_model(model, tmp_path)
    found = load_packed(tmp_path, KERNELS, "int4")
    kinds = {
        name: module.packed.weights.kind
        for name, module in found.named_modules()
        if isinstance(module, Linear) and module.packed is not None
    }
    assert kinds["layers.0.self_attn.o_proj"] == "int4"
    assert kinds["mtp.0.block.self_attn.o_proj"] == kinds["mtp.0.eh_proj"] == "int8"


@pytest.mark.parametrize("read", [holds_codes, partial(load_packed, kernels=KERNELS)])
def test_a_shape_that_no_memory_can_hold_is_named(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    save_model(random_model(tiny_config()), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(files.read_json(config) | {"hidden_size": 2**62}))
    with pytest.raises(CheckpointError, match="no model has such a shape") as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux tells a process its peak")
@pytest.mark.skipif(not chosen_kernels().is_native, reason="torch's twin copies before it packs")
@pytest.mark.parametrize("form", ["folder", "file"])
def test_memory_holds_the_weights_once(tmp_path: Path, form: str) -> None:
    changes = {"num_hidden_layers": 10, "hidden_size": 256, "moe_intermediate_size": 512}
    model = random_model(tiny_config(**changes))
    save_model(model, tmp_path, dtype=torch.bfloat16)
    path = tmp_path
    if form == "file":
        path = tmp_path / "model.gguf"
        reader = Reader(*open_weights(tmp_path))
        save_gguf(reader, path, None, {}, name="wide", dtype=torch.bfloat16)
    num_bytes = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert num_bytes > 40e6
    # The first load also pays for what a process needs once.
    load_packed(path, chosen_kernels().kernels)
    gc.collect()
    # What glibc keeps of freed memory would hide what the next load takes.
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = memory("VmRSS")
    found = load_packed(path, chosen_kernels().kernels)
    assert memory("VmHWM") - before < 1.15 * num_bytes
    assert found.stack is not None


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
