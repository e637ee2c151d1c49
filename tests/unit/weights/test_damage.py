"""Damaged folders: any flipped byte or lost end is one clear error, or changes nothing."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moestro.errors import CheckpointError
from moestro.ops.quantize import Kind
from moestro.weights.export import save_model
from moestro.weights.load import load_model, open_weights
from moestro.weights.quantize import Reader, save_quantized


@pytest.fixture(scope="module", params=["single", "shards", "fp8", "int8", "int4"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Any
) -> Path:
    """A folder in each layout, not to be changed."""
    folder = tmp_path_factory.mktemp(request.param)
    options: dict[str, dict[str, Any]] = {
        "single": {},
        "shards": {"max_shard_bytes": 3000},
        "fp8": {"fp8": True},
    }
    save_model(tiny_model(), folder, **options.get(request.param, {}))
    return folder if request.param in options else _round(folder, request.param)


def _round(folder: Path, kind: Kind) -> Path:
    rounded = folder.with_name(f"{folder.name}-rounded")
    rounded.mkdir()
    save_quantized(Reader(*open_weights(folder)), rounded, kind)
    return rounded


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_header_byte_is_an_error_or_changes_nothing(
    whole: Path, data: st.DataObject
) -> None:
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    name = data.draw(st.sampled_from(names))
    length = 8 + int.from_bytes((whole / name).read_bytes()[:8], "little")
    _assert_harmless(
        whole, name, data.draw(st.integers(0, length - 1)), data.draw(st.integers(1, 255))
    )


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_flipped_byte_of_the_index_is_an_error_or_changes_nothing(
    whole: Path, data: st.DataObject
) -> None:
    names = sorted(path.name for path in whole.glob("*.index.json"))
    if names:
        size = (whole / names[0]).stat().st_size
        place, change = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, 255))
        _assert_harmless(whole, names[0], place, change)


@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_flipped_byte_of_the_configuration_is_an_error_or_loads(
    whole: Path, place: int, change: int
) -> None:
    size = (whole / "config.json").stat().st_size
    draft = _flipped(whole, "config.json", place % size, change)
    _, complaint = _try(draft)
    assert "\n" not in complaint


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_file_is_an_error_that_names_it(
    whole: Path, share: float, tmp_path: Path
) -> None:
    for path in whole.glob("*.safetensors"):
        draft = tmp_path / path.stem
        shutil.copytree(whole, draft)
        content = path.read_bytes()
        (draft / path.name).write_bytes(content[: int(share * len(content))])
        _, complaint = _try(draft)
        assert complaint.startswith(str(draft / path.name))


def _flipped(whole: Path, name: str, place: int, change: int) -> Path:
    """Copy a folder by links, all but the one file that gets a byte changed."""
    draft = whole.parent / f"{whole.name}-flipped"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for path in whole.iterdir():
        (draft / path.name).symlink_to(path)
    content = bytearray((whole / name).read_bytes())
    content[place] ^= change
    (draft / name).unlink()
    (draft / name).write_bytes(content)
    return draft


def _assert_harmless(whole: Path, name: str, place: int, change: int) -> None:
    draft = _flipped(whole, name, place, change)
    found, complaint = _try(draft)
    if complaint:
        assert complaint.startswith(str(draft))
        assert "\n" not in complaint
    else:
        expected = load_model(whole).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def _try(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Return what a folder holds, or nothing and the one error that loading may raise."""
    try:
        return load_model(folder).state_dict(), ""
    except CheckpointError as error:
        return {}, str(error)
