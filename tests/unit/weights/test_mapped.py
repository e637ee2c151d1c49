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
    MappedFiles().release([path])
    assert resident() < before[1] - 4_000_000
    assert int(tensor.sum()) == before[0]


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux lists a process's mappings")
def test_a_link_stands_for_the_file_that_is_mapped(tmp_path: Path) -> None:
    path, link = tmp_path / "blob", tmp_path / "some.safetensors"
    save_file({"x": torch.arange(1 << 20)}, path)
    link.symlink_to(path)
    tensor = load_file(link)["x"]
    before = int(tensor.sum()), resident()
    MappedFiles().release([link])
    assert resident() < before[1] - 4_000_000


def test_a_file_that_is_not_mapped_is_left_alone(tmp_path: Path) -> None:
    tensor = torch.arange(1 << 20)
    save_file({"x": tensor}, tmp_path / "some.safetensors")
    MappedFiles().release([tmp_path / "some.safetensors"])
    assert torch.equal(tensor, torch.arange(1 << 20))


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096
