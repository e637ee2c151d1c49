"""A mapped file's memory is given back, and nobody else's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moestro.weights.mapped import MappedFiles

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux lists a process's mappings")
def test_pages_of_a_file_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"x": torch.arange(1 << 20)}, path)
    tensor = load_file(path)["x"]
    before = int(tensor.sum()), resident()
    MappedFiles(".safetensors").release(tensor)
    assert resident() < before[1] - 4_000_000
    assert int(tensor.sum()) == before[0]


def test_memory_that_is_no_files_is_left_alone() -> None:
    tensor = torch.arange(1 << 20)
    MappedFiles(".safetensors").release(tensor)
    assert torch.equal(tensor, torch.arange(1 << 20))


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096
