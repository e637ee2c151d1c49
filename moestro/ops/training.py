"""Experts in training: the native kernels where they serve, torch's products elsewhere.

All of a layer's feed-forward goes in one step: routed and shared experts, or a dense layer's only
one, each a set; their sum is added to the stream before it is rounded. Native passes take bfloat16
and give every sum one order, so that no result depends on threads. Next: grouped.py,
native/experts_training.h.

Shapes: T tokens, K slots per token, D width, E experts, F expert width, G = 2F.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.grouped import apply_experts, sort_pairs
from moestro.ops.kernels import Visits
from moestro.ops.native import WIDTH_MULTIPLE, NativeKernels


@dataclass(frozen=True)
class ExpertSet:
    """Experts of one shape, G = 2F rows of `gate_up_EGD` gate first, and who visits them.

    Without visits there is one expert, and every token visits it.
    """

    gate_up_EGD: Tensor
    down_EDF: Tensor
    visits: Visits | None = None

    def everyones(self, x_TD: Tensor) -> Visits:
        """Return the visits, spelled out."""
        if self.visits is not None:
            return self.visits
        weights_T1 = torch.ones(len(x_TD), 1)
        return Visits(torch.zeros(len(x_TD), 1, dtype=torch.int64), weights_T1, weights_T1.bool())


def visit_experts(
    x_TD: Tensor, sets: Sequence[ExpertSet], stream_TD: Tensor, row_multiple: int = 1
) -> Tensor:
    """Return the stream plus, over sets and a token's slots, the sum of weight * expert(x).

    Differentiable in `x_TD`, the stream, the visits' weights and all matrices; but for the weights
    they have one dtype.
    """
    kernels = native_kernels(x_TD, sets)
    if kernels is not None:
        return visit_natively(kernels, x_TD, sets, stream_TD)
    return _by_torch(x_TD, sets, stream_TD, row_multiple)


def _by_torch(
    x_TD: Tensor, sets: Sequence[ExpertSet], stream_TD: Tensor, row_multiple: int
) -> Tensor:
    parts = [_visit(x_TD, each, row_multiple) for each in sets]
    return stream_TD + (parts[0] if len(parts) == 1 else parts[0] + parts[1])


def _visit(x_TD: Tensor, experts: ExpertSet, row_multiple: int) -> Tensor:
    if experts.visits is None:
        gate_TF, up_TF = F.linear(x_TD, experts.gate_up_EGD[0]).chunk(2, dim=-1)
        return F.linear(F.silu(gate_TF) * up_TF, experts.down_EDF[0])
    visits, E = experts.visits, len(experts.down_EDF)
    pairs = sort_pairs(visits.experts_TK, visits.is_used_TK, E, row_multiple)
    weights_TK = visits.weights_TK.to(x_TD.dtype)
    return apply_experts(x_TD, weights_TK, pairs, experts.gate_up_EGD, experts.down_EDF)


def native_kernels(x_TD: Tensor, sets: Sequence[ExpertSet]) -> NativeKernels | None:
    """Return the native kernels if they take rows and matrices like these, else None."""
    widths = (width for each in sets for width in each.down_EDF.shape[1:])
    is_whole = all(width % WIDTH_MULTIPLE == 0 for width in widths)
    return native_for(x_TD, torch.bfloat16, find_fault) if is_whole else None


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twin."""
    T, K, E, D, F = 70, 2, 3, 64, 32
    experts_TK = torch.arange(T * K).view(T, K) % E
    is_used_TK = draw(T, K, seed=1) > -0.5

    def sets(weights_TK: Tensor, *matrices: Tensor) -> list[ExpertSet]:
        gate_up_EGD, down_EDF, shared_1GD, shared_1DF = matrices
        visits = Visits(experts_TK, weights_TK * is_used_TK, is_used_TK)
        return [ExpertSet(gate_up_EGD, down_EDF, visits), ExpertSet(shared_1GD, shared_1DF)]

    def native(x_TD: Tensor, stream_TD: Tensor, *rest: Tensor) -> Tensor:
        return visit_natively(kernels, x_TD, sets(*rest), stream_TD)

    def twin(x_TD: Tensor, stream_TD: Tensor, *rest: Tensor) -> Tensor:
        return _by_torch(x_TD, sets(*rest), stream_TD, row_multiple=1)

    inputs = [
        draw(T, D),
        draw(T, D, seed=2),
        draw(T, K, seed=3, dtype=torch.float32),
        draw(E, 2 * F, D, seed=4, scale=D**-0.5),
        draw(E, D, F, seed=5, scale=F**-0.5),
        draw(1, 4 * F, D, seed=6, scale=D**-0.5),
        draw(1, D, 2 * F, seed=7, scale=F**-0.5),
    ]
    return compare("experts in training", native, twin, inputs)


def visit_natively(
    kernels: NativeKernels, x_TD: Tensor, sets: Sequence[ExpertSet], stream_TD: Tensor
) -> Tensor:
    """Do it in one native call for each set, forward and back."""
    visits = [each.everyones(x_TD) for each in sets]
    matrices = [m for each in sets for m in (each.gate_up_EGD, each.down_EDF)]
    weights = [each.weights_TK for each in visits]
    out_TD: Tensor = _Experts.apply(kernels, visits, x_TD, stream_TD, *weights, *matrices)
    return out_TD


class _Experts(torch.autograd.Function):
    """Beside each set's visits stand their weights, which have gradients, then all matrices."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: NativeKernels,
        visits: list[Visits],
        x_TD: Tensor,
        stream_TD: Tensor,
        *given: Tensor,
    ) -> Tensor:
        number = len(visits)
        matrices = given[number:]
        hidden: list[Tensor] = []
        sums: list[Tensor] = []
        # The last set first: to the first one's sum are added all others' and the stream.
        for index in reversed(range(number)):
            before = [stream_TD, *sums] if index == 0 else sums
            gate_up_EGD, down_EDF = matrices[2 * index : 2 * index + 2]
            out_TD, hidden_PG = kernels.forward_experts(
                x_TD, visits[index], gate_up_EGD, down_EDF, before
            )
            sums = [out_TD]
            hidden.insert(0, hidden_PG)
        ctx.kernels, ctx.visits = kernels, visits
        ctx.save_for_backward(x_TD, *hidden, *matrices)
        return sums[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        number = len(ctx.visits)
        x_TD, *saved = ctx.saved_tensors
        hidden, matrices = saved[:number], saved[number:]
        dx_TD, dweights, dmatrices = None, [], []
        for index in range(number):
            gate_up_EGD, down_EDF = matrices[2 * index : 2 * index + 2]
            dx_TD, dweights_TK, *both = ctx.kernels.backward_experts(
                grads[0], x_TD, hidden[index], ctx.visits[index], gate_up_EGD, down_EDF, dx_TD
            )
            dweights.append(dweights_TK)
            dmatrices += both
        return None, None, dx_TD, grads[0], *dweights, *dmatrices
