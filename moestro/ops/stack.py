"""A model's layers as one native call: a step's rows through all of them, latents to their pages.

Answers can go on by several tokens in a call: embeddings, layers, head and picks, again and again.

The torch modules are the specification. Holds the tensors whose addresses C++ has. Knows no model;
model/stack.py takes one apart. Next: native.py; native/run.h has the phases.

Shapes: T rows, D width, L sparse layers, K slots per row, A blocks, Z tokens per block, W cache
width, S sequences, M layers, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from moestro.ops.kernels import PackedExperts
from moestro.ops.native import FORMATS, NativeKernels
from moestro.ops.packing import pack
from moestro.ops.panels import Panels, WeightKind, unpack
from moestro.ops.picking import Picked, PickRow, describe_row


@dataclass(frozen=True)
class Norm:
    """A scale and the epsilon of its root mean square."""

    weight_D: Tensor
    eps: float


@dataclass(frozen=True)
class Matrix:
    """Packed weights and what is added to their outputs."""

    weights: Panels
    bias_N: Tensor | None = None


@dataclass(frozen=True)
class GateParts:
    """A gate's weight in float32, its selection bias and its thresholds, where it has them."""

    weight: Panels
    bias_E: Tensor | None
    thresholds_N: Tensor | None


@dataclass(frozen=True)
class MtpParts:
    """What an MTP module does before its layer and behind it."""

    enorm: Norm
    hnorm: Norm
    eh_proj: Panels
    norm: Norm


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """One layer; `w_uk` and `w_uv` are W^UK and W^UV by head.

    Without query compression `query_a` and `query_norm` are None. A dense layer has no `gate` and
    no `routed`: its feed-forward is one shared expert.
    """

    input_norm: Norm
    query_a: Matrix | None
    query_norm: Norm | None
    query: Matrix
    latent: Matrix
    latent_norm: Norm
    w_uk: Panels
    w_uv: Panels
    out: Matrix
    post_norm: Norm
    gate: GateParts | None
    routed: PackedExperts | None
    shared: PackedExperts | None
    mtp: MtpParts | None = None


@dataclass(frozen=True)
class StackStep:
    """Which rows there are: positions, slots of their latents, budgets, and whose they are.

    `sequences_S3` has each sequence's first row, its number of rows, and where in `tables` its
    blocks begin. `fractions_T` None takes all experts. With `may_expand`, and if the stack
    `can_expand`, long prompts attend to expanded latents: faster, with other last bits.
    """

    positions_T: Tensor
    slots_T: Tensor
    fractions_T: Tensor | None
    sequences_S3: Tensor
    tables: Tensor
    pages_LAZW: Tensor
    may_expand: bool = False


@dataclass(frozen=True)
class Choices:
    """What the gates of a run chose."""

    experts_LTK: Tensor
    weights_LTK: Tensor
    is_used_LTK: Tensor


@dataclass(frozen=True)
class Decoded:
    """What answers came to: picks step by step, N rows each, and the last step's states.

    The rows of `chosen` are all steps' rows, one step's behind the other's.
    """

    picked: list[Picked]
    chosen: Choices
    hidden_ND: Tensor


@dataclass
class NativeStack:
    """Layers ready to run. `shape` gives native.Shape's fields; MTP modules' layers come last."""

    kernels: NativeKernels
    shape: dict[str, Any]
    layers: Sequence[LayerParts]
    final_norm: Norm
    embeddings_VD: Tensor
    head: Panels
    frequencies_P: Tensor
    fractions_N: Tensor | None
    cache_dtype: torch.dtype
    can_expand: bool = field(init=False, default=False)
    _native: Any = field(init=False)
    # How many sparse layers there are before each.
    _num_sparse: list[int] = field(init=False)
    # What C++ has addresses of.
    _kept: list[Tensor] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Describe everything to C++."""
        native = self.kernels.native
        is_sparse = (parts.gate is not None for parts in self.layers)
        self._num_sparse = list(accumulate(is_sparse, initial=0))
        shape = native.Shape()
        for name, value in self.shape.items():
            setattr(shape, name, value)
        shape.frequencies = self._address(self.frequencies_P)
        shape.num_fractions = 0 if self.fractions_N is None else len(self.fractions_N)
        shape.fractions = self._address(self.fractions_N)
        layers = [self._layer(parts) for parts in self.layers]
        self._native = native.Stack(self.kernels.library, shape, layers)
        self._native.set_final_norm(self._norm(self.final_norm))
        self._native.set_ends(*self._embeddings(), self.kernels.matrices(self.head))

    def expand_prompts(self) -> None:
        """Hold what expands latents to keys and values beside what is there already."""
        if self.can_expand:
            return
        for index, parts in enumerate(self.layers):
            keys, values = map(self.kernels.matrices, self._expansion(parts))
            self._native.set_expansion(index, keys, values)
        self.can_expand = True

    def _expansion(self, parts: LayerParts) -> tuple[Panels, Panels]:
        """Return what makes a head's keys, and its values, in the format of the cache."""
        kind: WeightKind = "float32" if self.cache_dtype == torch.float32 else "bfloat16"
        keys_HNC = unpack(parts.w_uk).transpose(1, 2)
        values = parts.w_uv
        if values.kind != kind:
            values = pack(unpack(values), kind, self.kernels)
        expansion = pack(keys_HNC, kind, self.kernels), values
        self._kept += [panels.data_HnB for panels in expansion]
        return expansion

    def bytes_read(self, layers: range) -> int:
        """Return how many bytes of weights one row needs that visits all its slots' experts."""
        return sum(self._bytes_of(self.layers[index]) for index in layers)

    def draft(self, embedded_TD: Tensor, hidden_TD: Tensor, layer: int, step: StackStep) -> None:
        """Run an MTP module in place of the tokens' embeddings, behind the states before them."""
        assert self.layers[layer].mtp is not None
        assert hidden_TD.shape == embedded_TD.shape
        assert hidden_TD.is_contiguous()
        self._run(embedded_TD, hidden_TD, range(layer, layer + 1), step, False)

    def run(self, x_TD: Tensor, layers: range, step: StackStep, has_final_norm: bool) -> Choices:
        """Send rows through some layers, in place; with the final norm if asked for."""
        return self._run(x_TD, None, layers, step, has_final_norm)

    def _run(
        self,
        x_TD: Tensor,
        hidden_TD: Tensor | None,
        layers: range,
        step: StackStep,
        has_final_norm: bool,
    ) -> Choices:
        chosen = self._choices(layers, x_TD.shape[0])
        self._native.run(
            layers.start,
            layers.stop,
            self._parts(x_TD, step, chosen),
            0 if hidden_TD is None else hidden_TD.data_ptr(),
            has_final_norm,
            torch.get_num_threads(),
        )
        return Choices(*chosen)

    def decode(
        self,
        tokens_T: Tensor,
        layers: range,
        step: StackStep,
        rows: Sequence[PickRow],
        stops: Sequence[Collection[int]],
        num_steps: int,
        wake_file: int | None = None,
    ) -> Decoded:
        """Let answers, a row each, go on by up to `num_steps` tokens, all layers in every step.

        A row's pick is its next step's token; its blocks must be there already. Tokens, positions
        and slots stay where the last step left them. All stop behind a step in which a row picks
        one of its `stops`, or cannot pick, or in which `wake_file` (a descriptor) can be read.
        """
        T, V = tokens_T.shape[0], self.head.num_outputs
        assert T == len(rows) == len(stops) == step.sequences_S3.shape[0]
        assert tokens_T.dtype == torch.int64
        assert tokens_T.is_contiguous()
        assert layers.start == 0
        x_TD, logits_TV = torch.empty(T, self.shape["hidden"]), torch.empty(T, V)
        chosen = self._choices(layers, num_steps * T)
        first, stride = logits_TV.data_ptr(), V * logits_TV.element_size()
        picked: list[Picked] = self._native.decode(
            layers.stop,
            num_steps,
            self._parts(x_TD, step, chosen),
            tokens_T.data_ptr(),
            [
                describe_row(self.kernels, row, first + index * stride, V)
                for index, row in enumerate(rows)
            ],
            [list(stop) for stop in stops],
            -1 if wake_file is None else wake_file,
            first,
            V,
            torch.get_num_threads(),
        )
        num_rows = len(picked)
        if num_rows < num_steps * T:
            chosen = tuple(part[:, :num_rows] for part in chosen)
        return Decoded(picked, Choices(*chosen), x_TD)

    def _choices(self, layers: range, num_rows: int) -> tuple[Tensor, ...]:
        L = self._num_sparse[layers.stop] - self._num_sparse[layers.start]
        size = (L, num_rows, self.shape["num_slots"])
        dtypes = (torch.int64, torch.float32, torch.bool)
        return tuple(torch.empty(size, dtype=dtype) for dtype in dtypes)

    def _parts(self, x_TD: Tensor, step: StackStep, chosen: Sequence[Tensor]) -> Any:
        """Say where a step's parts lie, having seen that they are as C++ reads them."""
        assert x_TD.dtype == torch.float32
        assert x_TD.is_contiguous()
        pages_LAZW, fractions_T = step.pages_LAZW, step.fractions_T
        assert pages_LAZW.dtype == self.cache_dtype
        assert pages_LAZW.is_contiguous()
        # Not len(): torch's is Python, and this runs for every token.
        M, A, Z, _ = pages_LAZW.shape
        assert len(self.layers) == M
        T = x_TD.shape[0]
        _check(step, T)
        experts, weights, is_used = chosen
        return self.kernels.native.StepParts(
            x_TD.data_ptr(),
            T,
            step.positions_T.data_ptr(),
            step.slots_T.data_ptr(),
            0 if fractions_T is None else fractions_T.data_ptr(),
            step.sequences_S3.data_ptr(),
            step.sequences_S3.shape[0],
            step.tables.data_ptr(),
            step.tables.numel(),
            pages_LAZW.data_ptr(),
            FORMATS["float32" if self.cache_dtype == torch.float32 else "bfloat16"],
            A * Z,
            Z,
            step.may_expand and self.can_expand,
            experts.data_ptr(),
            weights.data_ptr(),
            is_used.data_ptr(),
        )

    def _layer(self, parts: LayerParts) -> Any:
        # One rounding of the stream serves both products.
        assert (parts.query_a or parts.query).weights.kind == parts.latent.weights.kind
        layer = self.kernels.native.Layer()
        layer.input_norm = self._norm(parts.input_norm)
        if parts.query_a is not None and parts.query_norm is not None:
            layer.query_a = self._matrix(parts.query_a)
            layer.query_norm = self._norm(parts.query_norm)
        layer.query = self._matrix(parts.query)
        layer.latent = self._matrix(parts.latent)
        layer.latent_norm = self._norm(parts.latent_norm)
        layer.w_uk = self.kernels.matrices(parts.w_uk)
        layer.w_uv = self.kernels.matrices(parts.w_uv)
        layer.out = self._matrix(parts.out)
        layer.post_norm = self._norm(parts.post_norm)
        if parts.gate is not None:
            gate = parts.gate
            layer.gate = self.kernels.native.Gate(
                self.kernels.matrices(gate.weight),
                self._address(gate.bias_E),
                self._address(gate.thresholds_N),
            )
        if parts.routed is not None:
            layer.routed = self._experts(parts.routed)
        if parts.shared is not None:
            layer.shared = self._experts(parts.shared)
        if parts.mtp is not None:
            layer.mtp = self._mtp(parts.mtp)
        return layer

    def _mtp(self, mtp: MtpParts) -> Any:
        enorm, hnorm, norm = map(self._norm, (mtp.enorm, mtp.hnorm, mtp.norm))
        eh_proj = self.kernels.matrices(mtp.eh_proj)
        return self.kernels.native.Mtp(enorm, hnorm, eh_proj, norm)

    def _bytes_of(self, parts: LayerParts) -> int:
        matrices = [parts.query_a, parts.query, parts.latent, parts.out]
        always = [matrix.weights for matrix in matrices if matrix is not None]
        always += [parts.w_uk, parts.w_uv]
        if parts.gate is not None:
            always.append(parts.gate.weight)
        if parts.shared is not None:
            always += [parts.shared.gate_up, parts.shared.down]
        size = sum(panels.data_HnB.nbytes for panels in always)
        if parts.routed is not None:
            experts = parts.routed
            stacked = experts.gate_up.data_HnB.nbytes + experts.down.data_HnB.nbytes
            size += stacked * self.shape["num_slots"] // experts.down.num_matrices
        return int(size)

    def _norm(self, norm: Norm) -> Any:
        return self.kernels.native.Norm(self._address(norm.weight_D), norm.eps)

    def _matrix(self, matrix: Matrix) -> Any:
        bias_N = None if matrix.bias_N is None else self._keep(matrix.bias_N)
        return self.kernels.matrices(matrix.weights, bias_N)

    def _experts(self, experts: PackedExperts) -> Any:
        gate_up, down = (self.kernels.matrices(part) for part in (experts.gate_up, experts.down))
        return self.kernels.native.Experts(gate_up, down)

    def _embeddings(self) -> tuple[int, int]:
        # As they are: a copy of a large vocabulary would be most of a small model.
        if self.embeddings_VD.dtype != torch.bfloat16:
            return self._address(self.embeddings_VD), FORMATS["float32"]
        plain = self.embeddings_VD.detach().contiguous()
        self._kept.append(plain)
        return plain.data_ptr(), FORMATS["bfloat16"]

    def _address(self, tensor: Tensor | None) -> int:
        return 0 if tensor is None else self._keep(tensor).data_ptr()

    def _keep(self, tensor: Tensor) -> Tensor:
        """Return a tensor as C++ reads it, and see that it lives as long as this."""
        assert tensor.is_cpu
        plain = tensor.detach().float().contiguous()
        self._kept.append(plain)
        return plain


def _check(step: StackStep, num_rows: int) -> None:
    """See that C++ finds what it will read; it counts the sequences' rows itself."""
    whole = (step.positions_T, step.slots_T, step.sequences_S3, step.tables)
    assert all(each.dtype == torch.int64 and each.is_contiguous() for each in whole)
    assert step.positions_T.shape[0] == step.slots_T.shape[0] == num_rows
    fractions_T = step.fractions_T
    if fractions_T is not None:
        assert fractions_T.dtype == torch.float32
        assert fractions_T.is_contiguous()
        assert fractions_T.numel() == num_rows
