"""Products with packed weights: what the kernels promise, and the torch twin that specifies them.

A row's result has the same bits whatever the other rows are; the twin promises only the numbers.
Knows no processor. Next: native.py, choose.py.

Shapes: T tokens, H matrices (1, or one per head), D inputs, N outputs, K slots per token.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moestro.ops.grouped import apply_experts_one_by_one, sort_pairs
from moestro.ops.panels import Panels, unpack, unpack_gate_up


@dataclass(frozen=True)
class Visits:
    """Which experts each token visits, with what weights; slots not in use are skipped."""

    experts_TK: Tensor
    weights_TK: Tensor
    is_used_TK: Tensor


@dataclass(frozen=True)
class PackedExperts:
    """All experts of a layer: `gate_up` from `pack_gate_up`, `down` from `pack`."""

    gate_up: Panels
    down: Panels


class Kernels(Protocol):
    """An implementation, float32 in and out."""

    name: str

    def multiply(self, x_THD: Tensor, weights: Panels) -> Tensor:
        """Return y_THN: each token's inputs for each matrix, times that matrix."""

    def apply_experts(self, x_TD: Tensor, visits: Visits, experts: PackedExperts) -> Tensor:
        """Return the sum over a token's slots of weight * down(silu(gate(x)) * up(x))."""

    def sigmoid(self, x: Tensor) -> Tensor:
        """Return each number's sigmoid: torch's own may depend on where in memory it lies."""


@dataclass(frozen=True)
class Packed:
    """Matrices and who multiplies by them; any dtype in, the same out."""

    kernels: Kernels
    weights: Panels

    def by_head(self, x_THD: Tensor) -> Tensor:
        """Multiply each head's inputs by its own matrix."""
        return self.kernels.multiply(x_THD.float(), self.weights).to(x_THD.dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Multiply the last dimension by the only matrix."""
        y_T1N = self.by_head(x.reshape(-1, 1, x.shape[-1]))
        return y_T1N.view(*x.shape[:-1], self.weights.num_outputs)


class TorchKernels:
    """The specification."""

    name = "torch"

    def multiply(self, x_THD: Tensor, weights: Panels) -> Tensor:
        """Unpack and multiply."""
        return torch.einsum("thd,hnd->thn", x_THD, unpack(weights))

    def apply_experts(self, x_TD: Tensor, visits: Visits, experts: PackedExperts) -> Tensor:
        """Unpack and take one expert after the other."""
        gate_up_EGD = unpack_gate_up(experts.gate_up, experts.down.depth)
        pairs = sort_pairs(visits.experts_TK, visits.is_used_TK, len(gate_up_EGD))
        down_EDF = unpack(experts.down)
        return apply_experts_one_by_one(x_TD, visits.weights_TK, pairs, gate_up_EGD, down_EDF)

    def sigmoid(self, x: Tensor) -> Tensor:
        """Do as torch does."""
        return x.sigmoid()
