"""What a model's layers are made of, and their description to C++.

Knows no steps and no model; model/stack.py takes one apart. Next: stack.py, native/stack.h.

Shapes: D width, N grid points of the budget, E experts, V vocabulary, P rotary pairs; a matrix has
N outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moestro.ops.kernels import PackedExperts
from moestro.ops.native import FORMATS, NativeKernels, address_of
from moestro.ops.panels import Panels


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


@dataclass(frozen=True, kw_only=True)
class StackParts:
    """A whole model; `shape` gives native.Shape's numbers, MTP modules' layers come last."""

    shape: Mapping[str, Any]
    layers: Sequence[LayerParts]
    final_norm: Norm
    embeddings_VD: Tensor
    head: Panels
    frequencies_P: Tensor
    fractions_N: Tensor | None


def bytes_read(parts: LayerParts, num_slots: int) -> int:
    """Return how many bytes of weights one row needs that visits all its slots' experts."""
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
        size += stacked * num_slots // experts.down.num_matrices
    return int(size)


class Describer:
    """Describes layers to C++; `kept` are the tensors that it reads, to live as long as it does."""

    def __init__(self, kernels: NativeKernels) -> None:
        self.kept: list[Tensor] = []
        self._kernels = kernels

    def shape(self, parts: StackParts) -> Any:
        """Describe what all layers have in common."""
        fractions_N = parts.fractions_N
        return self._kernels.native.Shape(
            **parts.shape,
            frequencies=self.address(parts.frequencies_P),
            num_fractions=0 if fractions_N is None else len(fractions_N),
            fractions=self.address(fractions_N),
        )

    def ends(self, parts: StackParts) -> Any:
        """Describe what stands before the layers and behind them."""
        embeddings_VD = parts.embeddings_VD
        # C++ finds a token's row in the one by the number of the other's outputs.
        assert embeddings_VD.shape == (parts.head.num_outputs, parts.shape["hidden"])
        # As they are: a copy of a large vocabulary would be most of a small model.
        is_bfloat16 = embeddings_VD.dtype == torch.bfloat16
        plain_VD = embeddings_VD.detach().contiguous()
        if not is_bfloat16:
            plain_VD = plain_VD.float()
        self.kept.append(plain_VD)
        return self._kernels.native.Ends(
            embeddings=plain_VD.data_ptr(),
            format=FORMATS["bfloat16" if is_bfloat16 else "float32"],
            head=self._kernels.matrices(parts.head),
        )

    def layer(self, parts: LayerParts) -> Any:
        """Describe a layer."""
        # One rounding of the stream serves both products.
        assert (parts.query_a or parts.query).weights.kind == parts.latent.weights.kind
        layer = self._kernels.native.Layer()
        layer.input_norm = self.norm(parts.input_norm)
        if parts.query_a is not None and parts.query_norm is not None:
            layer.query_a = self._matrix(parts.query_a)
            layer.query_norm = self.norm(parts.query_norm)
        layer.query = self._matrix(parts.query)
        layer.latent = self._matrix(parts.latent)
        layer.latent_norm = self.norm(parts.latent_norm)
        layer.w_uk = self._kernels.matrices(parts.w_uk)
        layer.w_uv = self._kernels.matrices(parts.w_uv)
        layer.out = self._matrix(parts.out)
        layer.post_norm = self.norm(parts.post_norm)
        if parts.gate is not None:
            gate = parts.gate
            layer.gate = self._kernels.native.Gate(
                weight=self._kernels.matrices(gate.weight),
                selection_bias=self.address(gate.bias_E),
                thresholds=self.address(gate.thresholds_N),
            )
        if parts.routed is not None:
            layer.routed = self._experts(parts.routed)
        if parts.shared is not None:
            layer.shared = self._experts(parts.shared)
        if parts.mtp is not None:
            layer.mtp = self._mtp(parts.mtp)
        return layer

    def _mtp(self, mtp: MtpParts) -> Any:
        return self._kernels.native.Mtp(
            enorm=self.norm(mtp.enorm),
            hnorm=self.norm(mtp.hnorm),
            eh_proj=self._kernels.matrices(mtp.eh_proj),
            norm=self.norm(mtp.norm),
        )

    def norm(self, norm: Norm) -> Any:
        """Describe a norm."""
        return self._kernels.native.Norm(weight=self.address(norm.weight_D), epsilon=norm.eps)

    def _matrix(self, matrix: Matrix) -> Any:
        bias_N = None if matrix.bias_N is None else self._keep(matrix.bias_N)
        return self._kernels.matrices(matrix.weights, bias_N)

    def _experts(self, experts: PackedExperts) -> Any:
        return self._kernels.native.Experts(
            gate_up=self._kernels.matrices(experts.gate_up),
            down=self._kernels.matrices(experts.down),
        )

    def address(self, tensor: Tensor | None) -> int:
        """Return where a tensor lies as C++ reads it, in float32; 0 for None."""
        return address_of(None if tensor is None else self._keep(tensor))

    def _keep(self, tensor: Tensor) -> Tensor:
        """Return a tensor as C++ reads it, and see that it lives as long as this."""
        assert tensor.is_cpu
        plain = tensor.detach().float().contiguous()
        self.kept.append(plain)
        return plain
