"""Folders of safetensors: lazily read, strictly checked, deterministically written."""

import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moestro.errors import CheckpointError, StorageError
from moestro.weights.header import Entry
from moestro.weights.store import (
    INDEX_FILE,
    Outgoing,
    TensorFolder,
    Together,
    plan_shards,
    save_tensors,
)


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(3, 5, generator=generator) for name in "abcd"}
    return values | {"half": values["a"].bfloat16(), "odd": values["b"][:1].to(torch.float8_e4m3fn)}


def _save(folder: Path, tensors: dict[str, Tensor], max_shard_bytes: int = 10**9) -> None:
    outgoing = [
        Outgoing(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in tensors.items()
    ]
    save_tensors(folder, outgoing, max_shard_bytes)


def _place(folder: Path, places: dict[str, object]) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("max_shard_bytes", [1, 100, 130, 10**9])
def test_what_is_saved_is_read_bit_by_bit(tmp_path: Path, max_shard_bytes: int) -> None:
    tensors = _tensors()
    _save(tmp_path, tensors, max_shard_bytes)
    source = TensorFolder(tmp_path)
    assert sorted(source.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        read = source.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


def test_the_library_reads_every_shard_and_the_index_names_each_tensor(tmp_path: Path) -> None:
    tensors = _tensors()
    _save(tmp_path, tensors, 100)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    read = {name: load_file(tmp_path / shard)[name] for name, shard in index["weight_map"].items()}
    assert all(torch.equal(read[name].float(), tensor.float()) for name, tensor in tensors.items())
    assert max(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 1000


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _save(tmp_path / name, _tensors(), 100)
    first = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}


def test_each_tensor_starts_at_a_multiple_of_its_element(tmp_path: Path) -> None:
    tensors = {"odd": torch.zeros(3, dtype=torch.float8_e4m3fn), "wide": torch.ones(2)}
    _save(tmp_path, tensors)
    assert TensorFolder(tmp_path).read("wide").data_ptr() % 4 == 0


def test_types_and_shapes_are_known_without_reading(tmp_path: Path) -> None:
    _save(tmp_path, _tensors())
    source = TensorFolder(tmp_path)
    assert source.entry("half") == Entry("BF16", (3, 5))
    assert source.path("half") == tmp_path / "model.safetensors"
    assert "half" in source
    assert "quarter" not in source


@pytest.mark.parametrize(
    ("sizes", "limit", "shards"),
    [
        ([5, 5, 5], 10, [[0, 1], [2]]),
        ([5, 50, 5], 10, [[0], [1], [2]]),
        ([5, 5], 10, [[0, 1]]),
        ([], 10, [[]]),
    ],
)
def test_a_shard_passes_the_limit_only_for_one_large_tensor(
    sizes: list[int], limit: int, shards: list[list[int]]
) -> None:
    assert plan_shards(sizes, limit) == shards


def test_tensors_that_are_made_together_are_made_once_and_let_go_when_taken() -> None:
    made: list[weakref.ref[Tensor]] = []

    def build() -> tuple[Tensor, Tensor]:
        pair = torch.zeros(3), torch.ones(1)
        made.extend(map(weakref.ref, pair))
        return pair

    pair = Together(build)
    assert torch.equal(pair.take(0), torch.zeros(3))
    assert [each() is None for each in made] == [True, False]
    assert torch.equal(pair.take(1), torch.ones(1))
    assert [each() is None for each in made] == [True, True]


def test_an_index_that_names_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    _place(tmp_path, {"a": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors: no such file"):
        TensorFolder(tmp_path)


def test_a_shard_that_lacks_an_indexed_tensor_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    _place(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"one\.safetensors: lacks tensor b"):
        TensorFolder(tmp_path)


def test_a_tensor_that_the_index_does_not_place_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    _place(tmp_path, {"a": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"one\.safetensors: holds tensor b"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors", "/model.safetensors", "a/b.safetensors", "..", "",
        "a\0.safetensors", "a\\b.safetensors", ".hidden.safetensors", "model.bin",
        "a.safetensors\n", 3, None,
    ],
)  # fmt: skip
def test_an_index_may_not_name_a_file_outside_the_folder(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    _place(folder, {"a": name})
    with pytest.raises(CheckpointError, match=f"{INDEX_FILE}: places tensor a in"):
        TensorFolder(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_of_another_form_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX_FILE):
        TensorFolder(tmp_path)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        TensorFolder(tmp_path)
    with pytest.raises(CheckpointError, match="nothing: no such folder"):
        TensorFolder(tmp_path / "nothing")


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no device that is always full")
    (tmp_path / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        _save(tmp_path, {"a": torch.ones(100_000)})
