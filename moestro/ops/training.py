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
from moestro.ops.native import WIDTH_MULTIPLE, NativeKernels, address_of, plain


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
            experts = _TrainedExperts(kernels, visits[index], gate_up_EGD, down_EDF)
            out_TD, hidden_PG = experts.forward(x_TD, before)
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
            experts = _TrainedExperts(ctx.kernels, ctx.visits[index], gate_up_EGD, down_EDF)
            dx_TD, dweights_TK, *both = experts.backward(grads[0], x_TD, hidden[index], dx_TD)
            dweights.append(dweights_TK)
            dmatrices += both
        return None, None, dx_TD, grads[0], *dweights, *dmatrices


class _TrainedExperts:
    """One set of experts as C++ takes it; keeps alive what the addresses point to."""

    def __init__(
        self, kernels: NativeKernels, visits: Visits, gate_up_EGD: Tensor, down_EDF: Tensor
    ) -> None:
        E, D, F = down_EDF.shape
        T, K = visits.experts_TK.shape
        self.kernels = kernels
        self.shape = T, D
        self.experts_TK = plain(visits.experts_TK, torch.int64)
        self.weights_TK = plain(visits.weights_TK, torch.float32)
        self.is_used_TK = plain(visits.is_used_TK, torch.bool)
        self.gate_up_EGD = plain(gate_up_EGD, torch.bfloat16)
        self.down_EDF = plain(down_EDF, torch.bfloat16)
        assert self.weights_TK.shape == self.is_used_TK.shape == (T, K)
        assert gate_up_EGD.shape == (E, 2 * F, D)
        assert D % WIDTH_MULTIPLE == 0 == F % WIDTH_MULTIPLE
        self.visits = kernels.native.Visits(
            experts=self.experts_TK.data_ptr(),
            weights=self.weights_TK.data_ptr(),
            is_used=self.is_used_TK.data_ptr(),
            num_rows=T,
            num_slots=K,
        )
        self.experts = kernels.native.TrainedExperts(
            gate_up=self.gate_up_EGD.data_ptr(),
            down=self.down_EDF.data_ptr(),
            num_experts=E,
            width=D,
            hidden_width=F,
        )

    def forward(self, x_TD: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return out_TD, and hidden_PG for the way back; bfloat16.

        To `out_TD` are added up to two others, before it is rounded.
        """
        x_TD, before = self._rows(x_TD), [self._rows(each) for each in before]
        out_TD = torch.empty_like(x_TD)
        # Room for all slots: counting those in use would cost more than leaving some untouched.
        hidden_PG = x_TD.new_empty(self.is_used_TK.numel(), self.gate_up_EGD.shape[1])
        assert len(before) <= 2
        first_TD, second_TD = (*before, None, None)[:2]
        work = self.kernels.native.ExpertsForward(
            x=x_TD.data_ptr(),
            before=address_of(first_TD),
            also_before=address_of(second_TD),
            visits=self.visits,
            experts=self.experts,
            hidden=hidden_PG.data_ptr(),
            out=out_TD.data_ptr(),
        )
        self.kernels.library.forward_experts(work, torch.get_num_threads())
        return out_TD, hidden_PG

    def backward(
        self, dout_TD: Tensor, x_TD: Tensor, hidden_PG: Tensor, before_TD: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of inputs, visits' weights (float32) and both matrices.

        To the inputs' are added others, if there are any.
        """
        x_TD, dout_TD = self._rows(x_TD), self._rows(dout_TD)
        before_TD = None if before_TD is None else self._rows(before_TD)
        dx_TD, dweights_TK = torch.empty_like(x_TD), torch.empty_like(self.weights_TK)
        dgate_up_EGD, ddown_EDF = (torch.empty_like(m) for m in (self.gate_up_EGD, self.down_EDF))
        assert hidden_PG.dtype == torch.bfloat16
        assert hidden_PG.shape == (self.is_used_TK.numel(), self.gate_up_EGD.shape[1])
        assert hidden_PG.is_contiguous()
        work = self.kernels.native.ExpertsBackward(
            x=x_TD.data_ptr(),
            before=address_of(before_TD),
            hidden=hidden_PG.data_ptr(),
            dout=dout_TD.data_ptr(),
            visits=self.visits,
            experts=self.experts,
            dx=dx_TD.data_ptr(),
            dweights=dweights_TK.data_ptr(),
            dgate_up=dgate_up_EGD.data_ptr(),
            ddown=ddown_EDF.data_ptr(),
        )
        self.kernels.library.backward_experts(work, torch.get_num_threads())
        return dx_TD, dweights_TK, dgate_up_EGD, ddown_EDF

    def _rows(self, tensor_TD: Tensor) -> Tensor:
        assert tensor_TD.shape == self.shape
        return plain(tensor_TD, torch.bfloat16)
