"""Products with packed weights: what the kernels promise, and the torch twin that specifies them.

Inputs are rounded as the weights' kind asks: bfloat16 weights multiply bfloat16 inputs, int8 and
int4 weights multiply int8 inputs with a scale for each group of 32. A row's result has the same
bits whatever the other rows are; the twin promises only the numbers. Knows no processor.
Next: native.py, choose.py.

Shapes: T tokens, H matrices (1, or one per head), D inputs, N outputs, K slots per token, g groups
of inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.grouped import sort_pairs
from moestro.ops.panels import Panels, Rows, WeightKind, interleave, unpack, unpack_gate_up
from moestro.ops.quantize import GROUP, num_groups


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

    def interleave(self, rows: Sequence[Rows], panels: Panels) -> None:
        """Write matrices' outputs to their places in panels."""

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
        y_THN = self.kernels.multiply(x_THD.float(), self.weights)
        return y_THN if x_THD.dtype == torch.float32 else y_THN.to(x_THD.dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Multiply the last dimension by the only matrix."""
        y_T1N = self.by_head(x.reshape(-1, 1, x.shape[-1]))
        return y_T1N.view(*x.shape[:-1], self.weights.num_outputs)


class TorchKernels:
    """The specification."""

    name = "torch"

    def interleave(self, rows: Sequence[Rows], panels: Panels) -> None:
        """Take one matrix after the other."""
        for each in rows:
            interleave(each, panels)

    def multiply(self, x_THD: Tensor, weights: Panels) -> Tensor:
        """Unpack and multiply."""
        return torch.einsum("thd,hnd->thn", round_inputs(x_THD, weights.kind), unpack(weights))

    def apply_experts(self, x_TD: Tensor, visits: Visits, experts: PackedExperts) -> Tensor:
        """Unpack and take one expert after the other."""
        gate_up, down = experts.gate_up, experts.down
        pairs = sort_pairs(visits.experts_TK, visits.is_used_TK, down.num_matrices)
        weights_P = x_TD.new_zeros(pairs.borders[-1] + 1)
        weights_P[pairs.slot_TK.flatten()] = visits.weights_TK.flatten()
        rounded_TD, out_TD = round_inputs(x_TD, gate_up.kind), torch.zeros_like(x_TD)
        gate_up_EGD, down_EDF = unpack_gate_up(gate_up, down.depth), unpack(down)
        for expert in range(down.num_matrices):
            rows = slice(pairs.borders[expert], pairs.borders[expert + 1])
            token_N = pairs.token_P[rows]
            gate_NF, up_NF = F.linear(rounded_TD[token_N], gate_up_EGD[expert]).chunk(2, dim=-1)
            # Weights scale hidden activations, before these are rounded.
            hidden_NF = F.silu(gate_NF) * (up_NF * weights_P[rows, None])
            out_ND = F.linear(round_inputs(hidden_NF, down.kind), down_EDF[expert])
            out_TD = out_TD.index_add(0, token_N, out_ND)
        return out_TD

    def sigmoid(self, x: Tensor) -> Tensor:
        """Do as torch does."""
        return x.sigmoid()


def round_inputs(x: Tensor, kind: WeightKind) -> Tensor:
    """Round the last dimension to what meets weights of a kind, in float32."""
    if kind == "float32":
        return x
    if kind == "bfloat16":
        return x.bfloat16().float()
    depth = x.shape[-1]
    grouped = F.pad(x, (0, num_groups(depth) * GROUP - depth)).unflatten(-1, (-1, GROUP))
    most_g1 = grouped.abs().amax(dim=-1, keepdim=True)
    inverse_g1 = torch.where(most_g1 > 0, 127 / most_g1, 0.0)
    codes = (grouped * inverse_g1).round()
    return (codes * (most_g1 / 127)).flatten(-2)[..., :depth]
