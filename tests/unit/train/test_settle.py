"""A run's dtype is settled by what is faster on this machine for the shapes of its model."""

from typing import Any

import pytest
import torch

from moestro.model.presets import preset_tables
from moestro.ops import choose
from moestro.ops.kernels import TorchKernels
from moestro.ops.native import NativeKernels, load_native
from moestro.train import run
from moestro.train.config import build_run_config

pytest.importorskip("moestro.ops._native", reason="built without a compiler")


@pytest.fixture(autouse=True)
def torch_prefers_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "fastest_dtype", lambda device: torch.float32)


def settled(monkeypatch: pytest.MonkeyPatch, kernels: str, **changes: Any) -> str:
    """Return what "auto" becomes for the demo's shape with changes, where such kernels run."""
    found = TorchKernels() if kernels == "torch" else NativeKernels(kernels, load_native())
    monkeypatch.setattr(run, "chosen_kernels", lambda: choose.Chosen(found, "a test asks for it"))
    model = preset_tables("demo") | changes
    tables = {"data": {}, "model": model, "train": {"device": "cpu", "dtype": "auto"}}
    return run.settle_machine(build_run_config(tables)).train.dtype


def vectorized() -> str:
    found: str = load_native().instruction_sets()[0]
    if found == "portable":
        pytest.skip("this processor has no vectors that our kernels are written for")
    return found


def test_whole_widths_train_natively_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, vectorized()) == "bfloat16"


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 100},
        {"v_head_dim": 40},
        {"kv_lora_rank": 50},
        {"max_position_embeddings": 8192},
    ],
)
def test_shapes_that_no_pass_takes_train_on_torch_in_float32(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    assert settled(monkeypatch, vectorized(), **changes) == "float32"


@pytest.mark.parametrize("kernels", ["portable", "torch"])
def test_without_vectors_of_our_own_torch_decides(
    monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    assert settled(monkeypatch, kernels) == "float32"
