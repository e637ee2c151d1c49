"""How each weight of a model lies in a checkpoint, and how to read it: the one place that knows.

`Weights` answers for a model's tensor by its Hugging Face name: plain numbers, FP8 blocks, or int8
and int4 codes with group scales, which can be had as they are or as floats. Knows layouts, not
which tensors a model needs. Next: store.py for bytes, load.py for whole models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from moestro.errors import CheckpointError
from moestro.ops.pack import Block, dequantize_blocks, scale_shape
from moestro.ops.quantize import (
    GROUP,
    Kind,
    Quantized,
    are_finite,
    codes_shape,
    dequantize,
    scales_shape,
)
from moestro.weights.store import CONFIG_FILE, TORCH_DTYPES, TensorFolder

# `blocks` are GGUF's other formats, which come as floats only.
StoredKind = Literal["plain", "fp8", "int8", "int4", "blocks"]
METHOD = "moestro"
VERSION = 1
SCALE = "_scale"
_FP8_SCALE = "_scale_inv"
_PLAIN = ("F32", "BF16", "F16")
_CODES: dict[str, Kind] = {"I8": "int8", "U8": "int4"}
# Tables that some programs saved with the weights; they follow from the configuration.
_DERIVED = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Stored:
    """One weight: `read` gives its numbers, in `dtype`, and `read_codes` codes and scales, mapped.

    `read_codes` is there for the kinds int8 and int4 alone.
    """

    kind: StoredKind
    dtype: torch.dtype
    read: Callable[[], Tensor]
    read_codes: Callable[[], Quantized] | None = None


class Weights(Protocol):
    """The weights in a checkpoint, under their Hugging Face names."""

    @property
    def path(self) -> Path:
        """The folder or file that was opened."""

    def names(self) -> list[str]:
        """Return the names of all weights, without scales and what else belongs to one."""

    def stored(self, name: str, shape: tuple[int, ...]) -> Stored:
        """Say how a weight is stored; CheckpointError unless it can be read in this shape."""

    def file(self, name: str) -> Path:
        """Return the file that holds a weight."""


class FolderWeights:
    """The weights of a Hugging Face folder. `announced` is config.json's quantization_config."""

    def __init__(self, folder: Path, announced: object = None) -> None:
        self.path = folder
        self._block, self._has_groups = _read_announced(folder / CONFIG_FILE, announced)
        self._tensors = TensorFolder(folder)

    def names(self) -> list[str]:
        """Return the names of all weights, without scales and what else belongs to one."""
        return [name for name in self._tensors.names() if self._is_weight(name)]

    def file(self, name: str) -> Path:
        """Return the file that holds a weight."""
        return self._tensors.path(name)

    def stored(self, name: str, shape: tuple[int, ...]) -> Stored:
        """Say how a weight is stored; CheckpointError unless it can be read in this shape."""
        kind = self._tensors.entry(name).dtype
        if kind in _PLAIN:
            self._check_shape(name, shape)
            return Stored("plain", TORCH_DTYPES[kind], lambda: self._tensors.read(name))
        if kind == "F8_E4M3" and self._block is not None and len(shape) == 2:
            return self._stored_in_blocks(name, shape, self._block)
        if kind in _CODES and self._has_groups and len(shape) == 2:
            return self._stored_in_groups(name, shape, _CODES[kind])
        raise CheckpointError(
            f"{self.file(name)}: {name} is of type {kind}, which {CONFIG_FILE} does not announce:"
            f" expected {', '.join(_PLAIN)}, or matrices in a format of its quantization_config"
        )

    def _stored_in_blocks(self, name: str, shape: tuple[int, ...], block: Block) -> Stored:
        self._check_shape(name, shape)
        scale = self._check_scale(name, _FP8_SCALE, scale_shape(shape, block), _PLAIN)

        def read() -> Tensor:
            return dequantize_blocks(self._tensors.read(name), self._tensors.read(scale), block)

        return Stored("fp8", torch.float32, read)

    def _stored_in_groups(self, name: str, shape: tuple[int, ...], kind: Kind) -> Stored:
        self._check_shape(name, codes_shape(shape, kind))
        scale = self._check_scale(name, SCALE, scales_shape(shape), ("F16",))

        def read_codes() -> Quantized:
            scales = self._tensors.read(scale)
            if not are_finite(scales):
                raise CheckpointError(
                    f"{self.file(scale)}: {scale} holds a scale that is not finite:"
                    " copy the file again"
                )
            return Quantized(self._tensors.read(name), scales, shape[-1], kind)

        return Stored(kind, torch.float32, lambda: dequantize(read_codes()), read_codes)

    def _check_scale(
        self, name: str, suffix: str, shape: tuple[int, ...], kinds: tuple[str, ...]
    ) -> str:
        scale = name + suffix
        if scale not in self._tensors:
            kind = self._tensors.entry(name).dtype
            raise CheckpointError(
                f"{self.file(name)}: {name} is of type {kind}, but {scale} is missing:"
                " copy the file again"
            )
        self._check_shape(scale, shape)
        found = self._tensors.entry(scale).dtype
        if found not in kinds:
            raise CheckpointError(
                f"{self.file(scale)}: {scale} is of type {found}, expected {' or '.join(kinds)}:"
                " copy the file again"
            )
        return scale

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found = self._tensors.entry(name).shape
        if found != shape:
            raise CheckpointError(
                f"{self.file(name)}: {name} has shape {list(found)}, expected {list(shape)}:"
                f" give the {CONFIG_FILE} that belongs to the weights"
            )

    def _is_weight(self, name: str) -> bool:
        # transformers writes shared experts of zero elements where a model has none.
        if name.endswith(_DERIVED) or 0 in self._tensors.entry(name).shape:
            return False
        for suffix, kinds in ((_FP8_SCALE, ("F8_E4M3",)), (SCALE, tuple(_CODES))):
            owner = name.removesuffix(suffix)
            if owner != name and owner in self._tensors:
                return self._tensors.entry(owner).dtype not in kinds
        return True


def announce(kind: Kind) -> dict[str, Any]:
    """Return the quantization_config of a checkpoint in one of our formats."""
    return {"quant_method": METHOD, "version": VERSION, "format": kind, "group_size": GROUP}


def _read_announced(path: Path, table: object) -> tuple[Block | None, bool]:
    """Return the size of the FP8 blocks, or None, and whether there are codes with group scales."""
    if table is None:
        return None, False
    method = table.get("quant_method") if isinstance(table, dict) else table
    if not isinstance(table, dict) or method not in ("fp8", METHOD):
        raise CheckpointError(
            f"{path}: quant_method is {method!r}: Moestro reads fp8 and its own, {METHOD}:"
            " give unquantized weights"
        )
    if method == METHOD:
        _check_version(path, table)
        return None, True
    match table.get("weight_block_size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return (rows, columns), False
        case size:
            raise CheckpointError(
                f"{path}: weight_block_size is {size!r}: expected two numbers, like [128, 128]"
            )


def _check_version(path: Path, table: dict[str, Any]) -> None:
    wanted = {"version": (VERSION,), "group_size": (GROUP,), "format": ("int8", "int4")}
    for key, values in wanted.items():
        if table.get(key) not in values:
            raise CheckpointError(
                f"{path}: quantization_config has {key} {table.get(key)!r}, expected"
                f" {' or '.join(map(str, values))}: use the Moestro that wrote it, or convert anew"
            )
