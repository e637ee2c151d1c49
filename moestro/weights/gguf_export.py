"""A checkpoint into one GGUF file that llama.cpp loads, tensor by tensor.

MTP modules stay behind: llama.cpp's `deepseek2` has none. Rotary pairs are neighbours there, as in
DeepSeek's checkpoints. Knows layouts, not which bits a code has. Next: gguf_names.py,
gguf_config.py, gguf_query.py.

Shapes: H heads, N / R query widths without / with rotary position, C latent width, D width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from moestro.model.config import ModelConfig
from moestro.ops import gguf_blocks
from moestro.ops.quantize import GROUP, Kind
from moestro.weights.gguf_config import ARCHITECTURE, check_expressible, write_config
from moestro.weights.gguf_names import find_spot
from moestro.weights.gguf_query import as_llama_reads
from moestro.weights.names import Piece, pieces
from moestro.weights.quantize import Reader, target

_FLOATS = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}
_CODES: dict[Kind, Type] = {"int8": Type.Q8_0, "int4": Type.Q4_0}
_FILE_TYPES = {
    Type.F32: gguf.LlamaFileType.ALL_F32,
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    Type.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
}


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: the weights that it holds, one after the other."""

    name: str
    type: Type
    shape: tuple[int, ...]
    parts: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        size, num_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // size * num_bytes


def save_gguf(
    reader: Reader,
    path: Path,
    kind: Kind | None,
    vocabulary: Mapping[str, Any],
    *,
    name: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a file; `kind` None keeps matrices plain, in `dtype` or the checkpoint's own.

    ConfigError where llama.cpp has no word for the shape.
    """
    check_expressible(reader.config)
    reader = as_llama_reads(reader)
    plain = dtype or reader.own_dtype
    tensors = _plan(reader, kind, plain)
    metadata = write_config(reader.config) | dict(vocabulary)
    metadata["general.name"] = name
    metadata["general.file_type"] = int(_FILE_TYPES[_CODES[kind] if kind else _FLOATS[plain]])
    if kind:
        metadata["general.quantization_version"] = gguf.GGML_QUANT_VERSION
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _add_metadata(writer, metadata)
    for tensor in tensors:
        # The type counts, not numpy's, which has no name for most.
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.int8), tensor.num_bytes, tensor.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(_build(reader, tensor))
    writer.close()


def _plan(reader: Reader, kind: Kind | None, plain: torch.dtype) -> list[_Tensor]:
    """List the file's tensors: experts of a layer become one."""
    grouped: dict[str, list[Piece]] = {}
    for piece in pieces(reader.config, is_absorbed=True):
        if not piece.key.startswith("mtp."):
            grouped.setdefault(find_spot(piece.hf_name).tensor, []).append(piece)
    return [
        _Tensor(
            name,
            _choose_type(reader, parts[0], kind, plain),
            _shape(reader, parts),
            tuple(parts),
        )
        for name, parts in grouped.items()
    ]


def _choose_type(reader: Reader, piece: Piece, kind: Kind | None, plain: torch.dtype) -> Type:
    shape = reader.shape(piece)
    form = "plain" if kind is None else target(piece, kind)
    # llama.cpp wants norms and gates so.
    if len(shape) == 1 or piece.hf_name.endswith("mlp.gate.weight"):
        return Type.F32
    if form == "int8" or form == "int4":
        if shape[-1] % GROUP == 0:
            return _CODES[form]
        # It has no rows of part of a group.
        return _FLOATS[plain] if plain.itemsize == 2 else Type.F16
    return _FLOATS[plain]


def _shape(reader: Reader, parts: Sequence[Piece]) -> tuple[int, ...]:
    shape = reader.shape(parts[0])
    if find_spot(parts[0].hf_name).expert is not None:
        return (len(parts), *shape)
    share = parts[0].share
    return shape if share is None else (share.num_heads, shape[0] // share.num_heads, shape[1])


def _build(reader: Reader, tensor: _Tensor) -> np.ndarray:
    """Return the bytes of a tensor, made weight by weight."""
    out = torch.empty(len(tensor.parts), tensor.num_bytes // len(tensor.parts), dtype=torch.uint8)
    for row, piece in zip(out, tensor.parts, strict=True):
        row.copy_(_encode(reader, piece, tensor.type).flatten())
    data: np.ndarray = out.flatten().numpy()
    return data


def _encode(reader: Reader, piece: Piece, kind: Type) -> Tensor:
    codes = {each: own for own, each in _CODES.items()}
    config = reader.config
    if kind in codes:
        whole = reader.read_codes(piece, codes[kind])
        ordered = [_pair_neighbors(config, piece, part) for part in (whole.codes, whole.scales)]
        return gguf_blocks.join_codes(
            dataclasses.replace(whole, codes=ordered[0], scales=ordered[1])
        )
    dtypes = {each: own for own, each in _FLOATS.items()}
    value = _pair_neighbors(config, piece, reader.read(piece))
    return value.to(dtypes[kind]).contiguous().view(torch.uint8)


def _pair_neighbors(config: ModelConfig, piece: Piece, value: Tensor) -> Tensor:
    """Reorder rows whose rotary pairs lie half a width apart, so that they are neighbours."""
    if config.rope_interleave:
        return value
    rotary = config.qk_rope_head_dim
    if piece.hf_name.endswith(("q_proj.weight", "q_b_proj.weight")):
        heads = value.unflatten(0, (config.num_attention_heads, -1))
        kept, turned = heads.split([config.qk_nope_head_dim, rotary], dim=1)
        pairs = turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat([kept, pairs], dim=1).flatten(0, 1)
    if piece.hf_name.endswith("kv_a_proj_with_mqa.weight"):
        kept, turned = value.split([config.kv_lora_rank, rotary])
        return torch.cat([kept, turned.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)])
    return value


def _add_metadata(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
