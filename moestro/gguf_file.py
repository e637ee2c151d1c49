"""A GGUF file: its metadata and its tensors' places, proved before a tensor is read. No torch.

Whatever bytes the file holds, reading it takes time and memory in proportion to its header, and
ends in what it says or in one CheckpointError. Knows the container, no model and no vocabulary.
Next: text/gguf_vocab.py, weights/gguf_config.py, weights/gguf_weights.py.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moestro.errors import CheckpointError
from moestro.files import shown, storage_errors

Scalar = bool | int | float
Value = Scalar | str | list[Any]

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20
_ALIGNMENT_KEY = "general.alignment"
# Types of metadata, by number: what struct and numpy call them.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
# The fewest bytes that a string, an entry of metadata and a tensor's description take.
_LEAST_STRING, _LEAST_ENTRY, _LEAST_TENSOR = 8, 13, 32


@dataclass(frozen=True)
class BlockType:
    """How numbers are stored: `num_bytes` for each block of `size` numbers of a row."""

    name: str
    size: int
    num_bytes: int


TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    30: BlockType("BF16", 1, 2),
}


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file that is there; whatever else it is has another layout."""
    return path.suffix == SUFFIX and path.is_file()


@dataclass(frozen=True)
class Place:
    """One tensor: its type, its shape with the longest stride first, and where its bytes are."""

    type: BlockType
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor takes."""
        return math.prod(self.shape) // self.type.size * self.type.num_bytes


class GgufFile:
    """An opened file: `metadata` by key, `tensors` by name, `bytes_of` one of them, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path), path.open("rb") as file:
            if not path.stat().st_size:
                raise _damaged(path, "it is empty")
            # Private, as a tensor over read-only memory would have to be copied.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        cursor = _Cursor(path, self._bytes)
        self.metadata, num_tensors = _read_metadata(cursor)
        alignment = self.metadata.get(_ALIGNMENT_KEY, 32)
        if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT:
            raise _damaged(path, f"{_ALIGNMENT_KEY} is {alignment!r}")
        described = [_read_tensor(cursor) for _ in range(num_tensors)]
        first = -(-cursor.position // alignment) * alignment
        self.tensors = {
            name: Place(kind, shape, first + offset) for name, kind, shape, offset in described
        }
        if len(self.tensors) != num_tensors:
            raise _damaged(path, "a tensor's name stands in it twice")
        self._check_places(alignment)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self._bytes)

    def bytes_of(self, name: str) -> np.ndarray:
        """Return a tensor's bytes, mapped from the file: copy them before changing them."""
        place = self.tensors[name]
        return np.frombuffer(self._bytes, np.uint8, place.num_bytes, place.start)

    def _check_places(self, alignment: int) -> None:
        reached = 0
        for name, place in sorted(self.tensors.items(), key=lambda item: item[1].start):
            if place.start < reached or place.start % alignment:
                raise _damaged(self.path, f"tensor {name!r} starts at byte {place.start}")
            reached = place.start + place.num_bytes
            if reached > len(self._bytes):
                raise _damaged(
                    self.path,
                    f"tensor {name!r} ends at byte {reached} of {len(self._bytes)}",
                )


class _Cursor:
    """Reads forward through the header, never past the file's end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.position = 0
        self._data = data

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self.num_left:
            raise _damaged(self.path, f"it ends inside its header, at byte {len(self._data)}")
        self.position += num_bytes
        return self._data[self.position - num_bytes : self.position]

    def scalar(self, code: str) -> Scalar:
        size = struct.calcsize(f"<{code}")
        value: Scalar = struct.unpack(f"<{code}", self.take(size))[0]
        return value

    def number(self, code: str = "I") -> int:
        return int(self.scalar(code))

    def count(self, least_bytes: int) -> int:
        """Read how many things follow, each of at least some bytes."""
        count = self.number("Q")
        if count * least_bytes > self.num_left:
            raise _damaged(self.path, f"{count} entries at byte {self.position} cannot fit in it")
        return count

    def text(self) -> str:
        data = self.take(self.count(1))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"text at byte {self.position} is not UTF-8") from error

    @property
    def num_left(self) -> int:
        return len(self._data) - self.position


def _read_metadata(cursor: _Cursor) -> tuple[dict[str, Value], int]:
    if cursor.take(4) != _MAGIC:
        raise CheckpointError(f"{cursor.path}: not a GGUF file: give one, or a model's folder")
    version = cursor.number()
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{cursor.path}: GGUF version {version}: Moestro reads 2 and 3, little-endian:"
            " convert the model anew"
        )
    num_tensors = cursor.number("Q")
    metadata: dict[str, Value] = {}
    for _ in range(cursor.count(_LEAST_ENTRY)):
        key = cursor.text()
        if key in metadata:
            raise _damaged(cursor.path, f"{key!r} stands in it twice")
        metadata[key] = _read_value(cursor, cursor.number())
    if num_tensors * _LEAST_TENSOR > cursor.num_left:
        raise _damaged(cursor.path, f"{num_tensors} tensors cannot fit in it")
    return metadata, num_tensors


def _read_value(cursor: _Cursor, kind: int) -> Value:
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY:
        return _read_array(cursor)
    raise _damaged(cursor.path, f"a value at byte {cursor.position} is of unknown type {kind}")


def _read_array(cursor: _Cursor) -> list[Any]:
    kind = cursor.number()
    if kind == _STRING:
        return [cursor.text() for _ in range(cursor.count(_LEAST_STRING))]
    if kind not in _SCALARS:
        raise _damaged(cursor.path, f"an array at byte {cursor.position} is of type {kind}")
    dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
    count = cursor.count(dtype.itemsize)
    values: list[Any] = np.frombuffer(cursor.take(count * dtype.itemsize), dtype).tolist()
    return values


def _read_tensor(cursor: _Cursor) -> tuple[str, BlockType, tuple[int, ...], int]:
    name = cursor.text()
    num_dims = cursor.number()
    if not 1 <= num_dims <= _MAX_DIMS:
        raise _damaged(cursor.path, f"tensor {name!r} has {num_dims} dimensions")
    shape = tuple(reversed([cursor.number("Q") for _ in range(num_dims)]))
    number, offset = cursor.number(), cursor.number("Q")
    if number not in TYPES:
        known = ", ".join(each.name for each in TYPES.values())
        raise CheckpointError(
            f"{cursor.path}: tensor {shown(name)} is of type {number}, which Moestro does not"
            f" read: it reads {known}: convert the model to one of them"
        )
    kind = TYPES[number]
    if 0 in shape or shape[-1] % kind.size:
        raise _damaged(cursor.path, f"tensor {name!r} has shape {list(shape)} in {kind.name}")
    return name, kind, shape, offset


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged or cut short: {shown(what)}: copy the file again")
