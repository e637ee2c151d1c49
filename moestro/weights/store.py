"""A folder of safetensors files: tensors by name, read one at a time; and the way back to disk.

Knows names, shapes and bytes, not what a tensor is for. Next: names.py.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moestro import files
from moestro.errors import CheckpointError
from moestro.files import shown
from moestro.weights.header import ITEM_BYTES, Entry, read_header, write_header

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_SPELLINGS = {dtype: name for name, dtype in TORCH_DTYPES.items()}
# A name from an index must stay inside the folder.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


class TensorFolder:
    """The tensors of one folder. Headers are read and proved at once, data only by `read`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places = _find_tensors(folder)
        self._opened: dict[Path, Any] = {}

    def names(self) -> list[str]:
        """Return every tensor's name."""
        return list(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def entry(self, name: str) -> Entry:
        """Return a tensor's type and shape without reading it."""
        return self._places[name][1]

    def path(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._places[name][0]

    def read(self, name: str) -> Tensor:
        """Return a tensor on the CPU, mapped from the file: copy it before changing it."""
        path = self._places[name][0]
        try:
            with files.storage_errors(path):
                if path not in self._opened:
                    self._opened[path] = safe_open(path, framework="pt")
                tensor: Tensor = self._opened[path].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path}: tensor {shown(name)} cannot be read ({error}): copy the file again"
            ) from error
        return tensor


@dataclass(frozen=True)
class Outgoing:
    """A tensor to write: what it is called, what it is, and how to make it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    build: Callable[[], Tensor]

    @property
    def entry(self) -> Entry:
        """The tensor in the format's words."""
        return Entry(_SPELLINGS[self.dtype], self.shape)


def outgoing(name: str, tensor: Tensor) -> Outgoing:
    """Describe a tensor that is at hand, to be written as it is."""
    return Outgoing(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


class Together:
    """Tensors that come of one computation, made when the first of them has its turn to be written.

    Each is let go as it is taken, and the computation runs anew if one is asked for again.
    """

    def __init__(self, build: Callable[[], tuple[Tensor, ...]]) -> None:
        self._build = build
        self._left: dict[int, Tensor] = {}

    def take(self, place: int) -> Tensor:
        """Return what `build` has at a place."""
        if place not in self._left:
            self._left = dict(enumerate(self._build()))
        return self._left.pop(place)


def save_tensors(folder: Path, tensors: Sequence[Outgoing], max_shard_bytes: int) -> None:
    """Write one file, or shards with an index where one would pass `max_shard_bytes`.

    Holds one tensor at a time: the safetensors library would want a shard's tensors together.
    """
    shards = plan_shards([item.entry.num_bytes for item in tensors], max_shard_bytes)
    if len(shards) == 1:
        save_file(folder / SINGLE_FILE, tensors)
        return
    weight_map: dict[str, str] = {}
    for number, members in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        chosen = [tensors[i] for i in members]
        save_file(folder / name, chosen)
        weight_map |= {item.name: name for item in chosen}
    total = sum(item.entry.num_bytes for item in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files.write_json(folder / INDEX_FILE, index)


def save_file(path: Path, tensors: Sequence[Outgoing]) -> None:
    """Write one safetensors file, tensor by tensor in the order given."""
    # Widest elements first, so that every tensor starts at a multiple of its element's size.
    ordered = sorted(tensors, key=lambda item: -ITEM_BYTES[item.entry.dtype])
    header = write_header([(item.name, item.entry) for item in ordered])
    sizes = [item.entry.num_bytes for item in ordered]
    names = [item.name for item in ordered]
    starts = dict(zip(names, accumulate(sizes, initial=len(header)), strict=False))
    with files.storage_errors(path), path.open("wb") as file:
        file.write(header)
        for item in tensors:
            tensor = item.build().detach().to("cpu", item.dtype).contiguous()
            assert tuple(tensor.shape) == item.shape, item.name
            file.seek(starts[item.name])
            file.write(tensor.flatten().view(torch.uint8).numpy().data)


def plan_shards(sizes: Sequence[int], max_shard_bytes: int) -> list[list[int]]:
    """Split tensors, in order, so that a shard passes the limit only if one tensor alone does."""
    shards: list[list[int]] = [[]]
    held = 0
    for i, size in enumerate(sizes):
        if shards[-1] and held + size > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(i)
        held += size
    return shards


def _find_tensors(folder: Path) -> dict[str, tuple[Path, Entry]]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder: give a folder with {SINGLE_FILE}")
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() or not index.exists():
        return {name: (single, entry) for name, entry in read_header(single).items()}
    weight_map = _read_index(index)
    places: dict[str, tuple[Path, Entry]] = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        for name, entry in read_header(path).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{path}: holds tensor {shown(name)}, which {INDEX_FILE} does not place there:"
                    " copy the checkpoint again"
                )
            places[name] = (path, entry)
    for name, shard in weight_map.items():
        if name not in places:
            raise CheckpointError(
                f"{folder / shard}: lacks tensor {shown(name)}, which {INDEX_FILE} places there:"
                " copy the checkpoint again"
            )
    return places


def _read_index(path: Path) -> dict[str, str]:
    weight_map = files.read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map: copy the file again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{path}: places tensor {shown(name)} in {shard!r}, which is not a safetensors file"
                " of this folder: copy the file again"
            )
    return weight_map
