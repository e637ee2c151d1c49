"""Memory that is free is what the device can give, not what is idle at the moment."""

from pathlib import Path

import pytest
import torch

from moestro.ops import memory

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of which 3 GiB can be had, most of them pages of files; no container."""
    (tmp_path / "meminfo").write_text(
        "MemTotal:  8388608 kB\nMemFree:  262144 kB\nMemAvailable:  3145728 kB\n"
    )
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_LIMITS", (tmp_path / "memory.max",))
    return tmp_path


def test_pages_of_files_count_as_free(system: Path) -> None:
    assert memory.free_bytes(CPU) == 3 * 2**30


@pytest.mark.parametrize(("limit", "free"), [(2**30, 2**30), (4 * 2**30, 3 * 2**30)])
def test_a_container_has_no_more_than_its_limit(system: Path, limit: int, free: int) -> None:
    (system / "memory.max").write_text(f"{limit}\n")
    assert memory.free_bytes(CPU) == free
    assert memory.physical_bytes() <= limit


def test_a_container_without_a_limit_has_the_machine(system: Path) -> None:
    (system / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) == 3 * 2**30


def test_a_system_without_such_a_list_has_all_of_its_memory(system: Path) -> None:
    (system / "meminfo").unlink()
    assert memory.free_bytes(CPU) == memory.physical_bytes() > 2**28


def test_a_gpu_is_asked_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "mem_get_info", {gpu: (5, 80)}.__getitem__)
    assert memory.free_bytes(gpu) == 5
