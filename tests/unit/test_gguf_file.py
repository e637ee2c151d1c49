"""A GGUF container: whatever its bytes, what it says or one clear error."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import CheckpointError
from moestro.gguf_file import GgufFile


def write(path: Path, **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_uint32("a.number", 7)
    writer.add_string("a.text", "caf\u00e9")
    writer.add_array("a.list", ["x", "", "yy"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_float32("a.share", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.arange(4, dtype=np.float16))
    for key, value in metadata.items():
        writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def header(num_tensors: int, num_entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def described(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def rejects(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        GgufFile(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_llama_cpps_package_writes_is_read(tmp_path: Path) -> None:
    file = GgufFile(write(tmp_path / "a.gguf"))
    found = {key: file.metadata[f"a.{key}"] for key in ("number", "text", "list", "numbers")}
    assert found == {
        "number": 7, "text": "caf\u00e9", "list": ["x", "", "yy"], "numbers": [1, -2, 3],
    }  # fmt: skip
    assert file.metadata["a.share"] == 0.5
    assert file.metadata["a.flag"] is True
    assert file.tensors["one"].shape == (2, 3)
    values = file.bytes_of("one").view(np.float32)
    assert values.tolist() == [0, 1, 2, 3, 4, 5]
    assert file.bytes_of("two").view(np.float16).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"GG", "ends inside its header"),
        (b"PK\3\4" + bytes(40), "not a GGUF file"),
        (header(0, 0, version=1), "GGUF version 1"),
        (header(2**60, 0), "tensors cannot fit"),
        (header(0, 2**60), "entries at byte 24 cannot fit"),
        (header(0, 1) + struct.pack("<Q", 2**63) + bytes(9), "cannot fit"),
        (header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**40), "cannot fit"),
        (header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(8), "is of type 9"),
        (header(0, 1) + text(b"k") + struct.pack("<I", 99) + bytes(8), "unknown type 99"),
        (header(0, 1) + text(b"\xff\xfe") + struct.pack("<I", 4) + bytes(8), "is not UTF-8"),
        (header(0, 2) + (text(b"k") + struct.pack("<II", 4, 1)) * 2, "'k' stands in it twice"),
        (header(1, 0) + described(b"t", [4, 2**62]) + bytes(64), "ends at byte"),
        (header(1, 0) + described(b"t", [4], offset=2**40) + bytes(64), "ends at byte"),
        (header(1, 0) + described(b"t", [0, 4]) + bytes(64), r"shape \[4, 0\]"),
        (header(1, 0) + described(b"t", [33], kind=8) + bytes(64), r"shape \[33\] in Q8_0"),
        (header(1, 0) + described(b"t", [32], kind=40) + bytes(64), "is of type 40"),
        (header(1, 0) + text(b"t") + struct.pack("<I", 9) + bytes(64), "9 dimensions"),
        (header(2, 0) + described(b"t", [4]) * 2 + bytes(64), "stands in it twice"),
        (
            header(2, 0) + described(b"t", [16]) + described(b"u", [4], offset=32) + bytes(128),
            "'u' starts at byte",
        ),
        (
            header(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
            "general.alignment is 0",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    rejects(tmp_path / "bad.gguf", content, words)


@given(data=st.data())
def test_any_bytes_behind_the_magic_are_an_error_or_a_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + data.draw(st.binary(max_size=200)))
    complaint = ""
    try:
        GgufFile(path)
    except CheckpointError as error:
        complaint = str(error)
    assert "\n" not in complaint
