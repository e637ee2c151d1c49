"""Safetensors headers: what the library writes is read; any damage is a clear error."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from moestro.errors import CheckpointError
from moestro.weights.header import Entry, read_header, shown, write_header


def _write(path: Path, table: object, data: bytes = b"") -> Path:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _entry(
    dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_the_header_that_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "c": torch.ones(0, 5),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert found == {"a": Entry("F32", (2, 3)), "b": Entry("BF16", (4,)), "c": Entry("F32", (0, 5))}


def test_the_library_reads_the_header_that_is_written(tmp_path: Path) -> None:
    entries = [("a", Entry("F32", (1, 2))), ("b", Entry("U8", (3,)))]
    head = write_header(entries)
    assert len(head) % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(head + struct.pack("<ff", 1.5, 2.5) + b"\1\2\3")
    assert read_header(path) == dict(entries)
    loaded = load_file(path)
    assert loaded["a"].tolist() == [[1.5, 2.5]]
    assert loaded["b"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"{ ", "not valid JSON"),
        (b"\xff\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ([], "not a table"),
        ({"__metadata__": {"format": 1}}, "metadata"),
        ({"__metadata__": "pt"}, "metadata"),
        ({"a": 3}, "tensor a lacks"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "tensor a lacks"),
        ({"a": _entry() | {"more": 1}}, "tensor a lacks"),
        ({"a": _entry(dtype="F31")}, "unknown type 'F31'"),
        ({"a": _entry(dtype=["F32"])}, "unknown type"),
        ({"a": _entry(shape=[-2])}, r"shape \[-2\]"),
        ({"a": _entry(shape=[2.0])}, "shape"),
        ({"a": _entry(shape=[True, 2])}, "shape"),
        ({"a": _entry(shape=2)}, "shape"),
        ({"a": _entry(offsets=[0])}, "shape"),
        ({"a": _entry(shape=[3])}, "needs 12 bytes and its place holds 8"),
        ({"a": _entry(offsets=[8, 0])}, "needs 8 bytes"),
        ({"a": _entry(offsets=[4, 12])}, "tensor a starts at byte 4, expected 0"),
        ({"a": _entry(), "b": _entry()}, "tensor b starts at byte 0, expected 8"),
        ({"a": _entry(shape=[4], offsets=[0, 16])}, "holds 8 bytes of tensors, expected 16"),
        ({}, "holds 8 bytes of tensors, expected 0"),
        (b'{"a": {}, "a": {}}', "a stands in it twice"),
    ],
)
def test_a_wrong_header_is_an_error_that_names_the_file(
    tmp_path: Path, table: object, words: str
) -> None:
    path = _write(tmp_path / "x.safetensors", table, bytes(8))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no such file"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 0, 1])
def test_an_impossible_header_length_is_an_error(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_header(path)


@given(
    content=st.binary(max_size=64)
    | st.binary(max_size=40).map(lambda b: struct.pack("<Q", len(b)) + b)
)
def test_random_bytes_are_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_header(path)


@given(text=st.text())
def test_what_is_shown_is_one_short_printable_line(text: str) -> None:
    line: Any = shown(text)
    assert line.isprintable()
    assert line.isascii()
    assert len(line) <= 300
