"""A checkpoint straight into packed weights: what is stored in codes keeps its bits.

Matrices go from the mapped file to their place in the panels, so that memory holds them once.
Next: stored.py, model/prepare.py, ops/panels.py.

Shapes: N rows, D columns, H heads, E rows of `kv_b_proj` per head, C latent width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from moestro.model.model import Transformer
from moestro.model.prepare import kind_of, prepare_with
from moestro.ops.kernels import Kernels
from moestro.ops.packing import PanelWriter, pack_expansion
from moestro.ops.panels import Layout, Panels, WeightKind
from moestro.ops.quantize import Quantized
from moestro.weights.load import build_empty, find_pieces, open_weights, own_dtype, prove_exact
from moestro.weights.mapped import MappedFiles
from moestro.weights.names import Piece
from moestro.weights.stored import Stored, Weights


def load_packed(
    folder: Path,
    kernels: Kernels,
    kind: WeightKind | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Transformer:
    """Load a checkpoint ready for the kernels; `kind` None keeps what it is stored in.

    A matrix in codes is never rounded again, whatever `kind` says. `on_progress` hears the share
    that is read.
    """
    config, weights = open_weights(folder)
    model = build_empty(config, weights)
    table = find_pieces(config, weights)
    prove_exact(weights, table, model)
    if kind is None:
        kind = "float32" if own_dtype(weights, config) == torch.float32 else "bfloat16"
    packer = _Packer(model, kernels, weights, table, kind, on_progress)
    model.load_state_dict(_read_others(model, weights, table), strict=False, assign=True)
    # Before the stack is built, which takes the tables as they are.
    model.reset_tables()
    prepare_with(model, kernels, packer)
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model.eval()


def holds_codes(folder: Path) -> bool:
    """Say whether a checkpoint stores any matrix in codes that the kernels take as they are."""
    config, weights = open_weights(folder)
    state = build_empty(config, weights).state_dict()
    names = set(weights.names())
    return any(
        weights.stored(piece.hf_name, piece.shape(state[piece.key])).kind in ("int8", "int4")
        for piece in find_pieces(config, weights)
        if piece.hf_name in names
    )


class _Packer:
    """Packs a model's matrices by the names of its parameters."""

    def __init__(
        self,
        model: Transformer,
        kernels: Kernels,
        weights: Weights,
        table: list[Piece],
        kind: WeightKind,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._weights = weights
        self._kind: WeightKind = kind
        self._on_progress = on_progress
        self._shapes = {key: value.shape for key, value in model.state_dict().items()}
        self._pieces: dict[str, list[Piece]] = {}
        for piece in table:
            self._pieces.setdefault(piece.key, []).append(piece)
        self._num_all, self._num_done = len(table), 0
        self._files = MappedFiles()

    def __call__(self, key: str, layout: Layout) -> Panels:
        """Pack one parameter's pieces."""
        pieces = self._pieces[key]
        if layout in ("keys", "values"):
            panels = self._pack_expansion(key, pieces, layout)
        else:
            panels = self._pack_rows(key, pieces, layout == "gate_up")
        self._files.release(self._weights.file(piece.hf_name) for piece in pieces)
        return panels

    def _pack_rows(self, key: str, pieces: list[Piece], is_gate_up: bool) -> Panels:
        shape = self._shapes[key]
        N, D = shape[-2] // 2 if is_gate_up else shape[-2], shape[-1]
        num_matrices = shape[0] if len(shape) == 3 else 1
        kind = self._kind_of(key, self._stored(key, pieces[0]))
        writer = PanelWriter(self._kernels, kind, num_matrices, (N, D), is_gate_up)
        for piece in pieces:
            _put(writer, self._stored(key, piece), *_place(piece, N))
            self._report()
        return writer.finish()

    def _pack_expansion(self, key: str, pieces: list[Piece], layout: Layout) -> Panels:
        config = self._model.config
        H, C, rows = config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim
        if pieces[0].share is None:
            stored = self._stored(key, pieces[0])
            up_HEC, kind = stored.read().view(H, -1, C), self._kind_of(key, stored)
            return pack_expansion(up_HEC, rows, layout, kind, self._kernels)
        is_keys = layout == "keys"
        piece = next(p for p in pieces if p.share and p.share.is_transposed == is_keys)
        stored = self._stored(key, piece)
        shape = (C, rows) if is_keys else (config.v_head_dim, C)
        writer = PanelWriter(self._kernels, self._kind_of(key, stored), H, shape)
        for head, part in enumerate(_by_head(stored, H)):
            if isinstance(part, Quantized):
                writer.put_codes(part, head)
            else:
                writer.put(part, head)
        self._report()
        return writer.finish()

    def _stored(self, key: str, piece: Piece) -> Stored:
        # The shape alone matters.
        like = torch.empty(self._shapes[key], device="meta")
        return self._weights.stored(piece.hf_name, piece.shape(like))

    def _kind_of(self, key: str, stored: Stored) -> WeightKind:
        if stored.kind == "int8" or stored.kind == "int4":
            return stored.kind
        return kind_of(key, self._kind)

    def _report(self) -> None:
        self._num_done += 1
        if self._on_progress is not None:
            self._on_progress(self._num_done / self._num_all)


def _place(piece: Piece, num_rows: int) -> tuple[int, int]:
    """Return which matrix of a parameter a piece is, and which half of gate and up."""
    matrix, half = 0, 0
    for index in piece.index:
        if isinstance(index, int):
            matrix = index
        elif index.start:
            assert index.start == num_rows
            half = 1
    return matrix, half


def _put(writer: PanelWriter, stored: Stored, matrix: int, half: int) -> None:
    if stored.kind == writer.kind:
        assert stored.read_codes is not None
        writer.put_codes(stored.read_codes(), matrix, half)
    else:
        writer.put(stored.read(), matrix, half)


def _by_head(stored: Stored, num_heads: int) -> Sequence[Tensor | Quantized]:
    if stored.read_codes is None:
        return list(stored.read().unflatten(0, (num_heads, -1)))
    whole = stored.read_codes()
    codes, scales = (part.unflatten(0, (num_heads, -1)) for part in (whole.codes, whole.scales))
    return [
        Quantized(codes[head], scales[head], whole.depth, whole.kind) for head in range(num_heads)
    ]


def _read_others(model: Transformer, weights: Weights, table: list[Piece]) -> dict[str, Tensor]:
    """Read what is not packed: norms, biases, the embedding, the gates' weights and biases."""
    state = model.state_dict()
    names = {name for name in state if _is_plain(name, state[name])}
    read = {}
    for piece in table:
        if piece.key in names:
            assert not piece.index
            tensor = weights.stored(piece.hf_name, piece.shape(state[piece.key])).read()
            # Steps of a gate's bias are finer than bfloat16 resolves.
            read[piece.key] = tensor.float() if "e_score_correction" in piece.key else tensor
    return read


def _is_plain(name: str, value: Tensor) -> bool:
    return value.dim() == 1 or name == "embed_tokens.weight" or name.endswith(".gate.weight")
