"""The header of a safetensors file: names, types, shapes and places, proved before one is read.

Knows JSON and byte offsets, not tensors. Next: store.py.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moestro import files
from moestro.errors import CheckpointError
from moestro.files import shown

# Bytes per element of each type that a checkpoint may hold, in the format's own spelling.
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
# The limit of the safetensors library: a larger header is a damaged length.
_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Entry:
    """One tensor's type and shape, in the format's words."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, Entry]:
    """Read a safetensors header; prove that each byte after it belongs to one tensor."""
    text, num_data_bytes = _read_text(path)
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"the header is not valid JSON ({error})") from error
    if not isinstance(table, dict):
        raise _damaged(path, "the header is not a table of tensors")
    _check_metadata(path, table.pop("__metadata__", {}))
    spans = {name: _parse_entry(path, name, fields) for name, fields in table.items()}
    _check_spans(path, spans, num_data_bytes)
    return {name: entry for name, (entry, _, _) in spans.items()}


def write_header(entries: Sequence[tuple[str, Entry]]) -> bytes:
    """Return the bytes that stand before the data of `entries`, laid end to end in this order."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, entry in entries:
        stop = start + entry.num_bytes
        table[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _read_text(path: Path) -> tuple[bytes, int]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file: copy the checkpoint again")
    with files.storage_errors(path), path.open("rb") as file:
        num_file_bytes = path.stat().st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        rest = num_file_bytes - _LENGTH_BYTES
        if rest < 2 or not 2 <= length <= min(rest, _MAX_HEADER_BYTES):
            raise _damaged(path, f"{num_file_bytes} bytes cannot hold a header of {length}")
        text = file.read(length)
    if len(text) != length:
        raise _damaged(path, "it ends inside the header")
    return text, rest - length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    # Counted only where it must be: a header has a table for each tensor.
    if len(table) != len(pairs):
        name, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(name)} stands in it twice")
    return table


def _check_metadata(path: Path, metadata: object) -> None:
    is_text = isinstance(metadata, dict) and all(
        isinstance(value, str) for value in metadata.values()
    )
    if not is_text:
        raise _damaged(path, "the header's metadata is not a table of text")


def _parse_entry(path: Path, name: str, fields: object) -> tuple[Entry, int, int]:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor {name} lacks its type, shape or place")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _damaged(path, f"tensor {name} has the unknown type {dtype!r}")
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name} has shape {shape!r} at bytes {offsets!r}")
    entry, (start, stop) = Entry(dtype, tuple(shape)), offsets
    if stop - start != entry.num_bytes:
        raise _damaged(
            path, f"tensor {name} needs {entry.num_bytes} bytes and its place holds {stop - start}"
        )
    return entry, start, stop


def _check_spans(path: Path, spans: dict[str, tuple[Entry, int, int]], num_data_bytes: int) -> None:
    reached = 0
    for name, (_, start, stop) in sorted(spans.items(), key=lambda item: item[1][1:]):
        if start != reached:
            raise _damaged(path, f"tensor {name} starts at byte {start}, expected {reached}")
        reached = stop
    if reached != num_data_bytes:
        raise _damaged(path, f"it holds {num_data_bytes} bytes of tensors, expected {reached}")


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged or cut short: {shown(what)}: copy the file again")
