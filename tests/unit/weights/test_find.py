"""Which folder MODEL means."""

from pathlib import Path

import pytest

from moestro.errors import CheckpointError
from moestro.weights.find import find_checkpoint


def test_a_folder_with_a_shape_is_a_checkpoint_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    assert find_checkpoint(tmp_path) == tmp_path


def test_a_run_means_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "step-2").mkdir(parents=True)
    (tmp_path / "latest").write_text("step-2\n")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-2"


@pytest.mark.parametrize("name", ["", "step-3", "../run", "."])
def test_a_pointer_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / "checkpoints" / "step-2").mkdir(parents=True)
    (tmp_path / "latest").write_text(name)
    with pytest.raises(CheckpointError, match="which is not there"):
        find_checkpoint(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "x")


def test_a_file_of_another_kind_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(CheckpointError, match=r"is a file, but no \.gguf file: give a run"):
        find_checkpoint(path)
