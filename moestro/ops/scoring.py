"""A gate's scores and choice, and the losses that balance it, in native calls on CPUs.

float32 throughout: bfloat16 scores tie and flip between near-equal experts. What model/gate.py and
train/balance.py do in torch is the specification. Next: model/gate.py, native/gate_training.h,
native/balance_training.h.

Shapes: T tokens, D width, E experts, K slots, N grid points of the budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.kernels import Visits
from moestro.ops.native import NativeKernels, address_of

# Numbers of a panel.
_MULTIPLE = 16
# The gradient of larger gates would fill the caches with sums of pieces.
_MOST_WEIGHTS = 1 << 16


@dataclass(frozen=True)
class Choosing:
    """What a gate chooses by beside its scores. `rule` gives native.ChoiceRule's fields.

    `fraction_T`, each token's share of the way from the fewest experts to the most, None where all
    take the most, is looked up in `thresholds_N` over `fractions_N`.
    """

    rule: Mapping[str, Any]
    bias_E: Tensor | None
    fraction_T: Tensor | None
    fractions_N: Tensor
    thresholds_N: Tensor


# Logits and scores of all experts; what is chosen by, group limits included, and the best K of it;
# the experts behind those, their weights, and which slots are in use.
Routed = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def gate_kernels(x_TD: Tensor, weight_ED: Tensor) -> NativeKernels | None:
    """Return the native kernels if they take a gate of this shape, else None."""
    is_fitting = weight_ED.numel() <= _MOST_WEIGHTS and x_TD.shape[1] % _MULTIPLE == 0
    if not is_fitting or weight_ED.dtype != torch.float32:
        return None
    return native_for(x_TD, torch.bfloat16, find_fault)


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twin: sigmoid scores and a bias that steers, all slots in use."""
    T, D, E, K, scale = 70, 48, 8, 3, 1.5
    rule = {
        "num_slots": K,
        "fewest": K,
        "num_expert_groups": 1,
        "topk_group": 1,
        "best_of_group": 2,
        "is_sigmoid": True,
        "is_normalized": True,
        "routed_scaling_factor": scale,
    }
    bias_E, nothing = torch.linspace(0.0, 0.2, E), torch.empty(0)

    def native(x_TD: Tensor, weight_ED: Tensor) -> tuple[Tensor, ...]:
        choosing = Choosing(rule, bias_E, None, nothing, nothing)
        logits_TE, scores_TE, selection_TE, ranked_TK, _, weights_TK, _ = route(
            kernels, x_TD, weight_ED, choosing
        )
        return logits_TE, scores_TE, selection_TE, ranked_TK, weights_TK

    def twin(x_TD: Tensor, weight_ED: Tensor) -> tuple[Tensor, ...]:
        logits_TE = x_TD @ weight_ED.T
        scores_TE = logits_TE.sigmoid()
        selection_TE = scores_TE.detach() + bias_E
        ranked_TK, experts_TK = selection_TE.topk(K, dim=-1)
        weights_TK = scores_TE.gather(1, experts_TK)
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True) * scale
        return logits_TE, scores_TE, selection_TE, ranked_TK, weights_TK

    inputs = [draw(T, D), draw(E, D, seed=1, scale=0.2, dtype=torch.float32)]
    return compare("a gate in training", native, twin, inputs)


def route(kernels: NativeKernels, x_TD: Tensor, weight_ED: Tensor, choosing: Choosing) -> Routed:
    """Return (logits_TE, scores_TE, selection_TE, ranked_TK, experts_TK, weights_TK, is_used_TK).

    Logits, scores and weights are differentiable in `x_TD` and `weight_ED`.
    """
    routed: Routed = _Route.apply(kernels, x_TD, weight_ED, choosing)
    return routed


def balance_loss(
    kernels: NativeKernels,
    gate: tuple[Tensor, Tensor],
    visits: Visits,
    num_sequences: int,
    weights: tuple[float, float],
) -> Tensor:
    """Return the sequence-wise loss and the z-loss of equal sequences, summed by `weights`.

    Differentiable in `gate`, which is (logits_TE, scores_TE).
    """
    loss: Tensor = _Balance.apply(kernels, *gate, visits, num_sequences, weights)
    return loss


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: NativeKernels, x_TD: Tensor, weight_ED: Tensor, choosing: Choosing
    ) -> Routed:
        gate = _Gate(kernels, x_TD, weight_ED, choosing)
        T, E, K = gate.shape
        logits_TE, scores_TE, selection_TE = torch.empty(3, T, E)
        ranked_TK, weights_TK = torch.empty(2, T, K)
        experts_TK = torch.empty(T, K, dtype=torch.int64)
        is_used_TK = torch.empty(T, K, dtype=torch.bool)
        work = kernels.native.GateForward(
            gate=gate.rows,
            logits=logits_TE.data_ptr(),
            scores=scores_TE.data_ptr(),
            selection=selection_TE.data_ptr(),
            slots=kernels.native.ChoiceSlots(
                experts=experts_TK.data_ptr(),
                weights=weights_TK.data_ptr(),
                is_used=is_used_TK.data_ptr(),
                ranked=ranked_TK.data_ptr(),
            ),
        )
        kernels.library.forward_gate(work, torch.get_num_threads())
        ctx.gate = gate
        ctx.save_for_backward(scores_TE, experts_TK, weights_TK, is_used_TK)
        ctx.mark_non_differentiable(selection_TE, ranked_TK, experts_TK, is_used_TK)
        ctx.set_materialize_grads(False)
        return logits_TE, scores_TE, selection_TE, ranked_TK, experts_TK, weights_TK, is_used_TK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gate: _Gate = ctx.gate
        T, E, K = gate.shape
        dlogits_TE, dscores_TE, dweights_TK = (
            None if grad is None else grad.float().contiguous()
            for grad in (grads[0], grads[1], grads[5])
        )
        for each in (dlogits_TE, dscores_TE):
            assert each is None or each.shape == (T, E)
        assert dweights_TK is None or dweights_TK.shape == (T, K)
        dx_TD, dweight_ED = torch.empty_like(gate.x_TD), torch.empty_like(gate.weight_ED)
        scores_TE, experts_TK, weights_TK, is_used_TK = ctx.saved_tensors
        work = gate.kernels.native.GateBackward(
            gate=gate.rows,
            scores=scores_TE.data_ptr(),
            experts=experts_TK.data_ptr(),
            weights=weights_TK.data_ptr(),
            is_used=is_used_TK.data_ptr(),
            dlogits=address_of(dlogits_TE),
            dscores=address_of(dscores_TE),
            dweights=address_of(dweights_TK),
            dx=dx_TD.data_ptr(),
            dweight=dweight_ED.data_ptr(),
        )
        gate.kernels.library.backward_gate(work, torch.get_num_threads())
        return None, dx_TD, dweight_ED, None


class _Gate:
    """A gate's pass as C++ takes it; keeps alive what the addresses point to."""

    def __init__(
        self, kernels: NativeKernels, x_TD: Tensor, weight_ED: Tensor, choosing: Choosing
    ) -> None:
        self.kernels = kernels
        self.x_TD, self.weight_ED = x_TD.contiguous(), weight_ED.contiguous()
        # A pass without a table takes all experts, whatever the budget.
        has_table = choosing.fraction_T is not None and choosing.thresholds_N.numel() > 0
        self.bias_E = _plain(choosing.bias_E)
        self.fraction_T = _plain(choosing.fraction_T if has_table else None)
        self.fractions_N = _plain(choosing.fractions_N)
        self.thresholds_N = _plain(choosing.thresholds_N)
        (T, D), E = self.x_TD.shape, len(self.weight_ED)
        self.shape = T, E, choosing.rule["num_slots"]
        assert self.weight_ED.shape == (E, D)
        assert self.bias_E is None or self.bias_E.shape == (E,)
        assert self.fraction_T is None or self.fraction_T.shape == (T,)
        assert choosing.fractions_N.shape == choosing.thresholds_N.shape
        self.rows = kernels.native.GateRows(
            x=self.x_TD.data_ptr(),
            num_rows=T,
            width=D,
            weight=self.weight_ED.data_ptr(),
            num_experts=E,
            rule=kernels.native.ChoiceRule(
                **choosing.rule,
                num_fractions=choosing.fractions_N.numel(),
                fractions=address_of(self.fractions_N),
            ),
            bias=address_of(self.bias_E),
            thresholds=address_of(self.thresholds_N),
            fractions=address_of(self.fraction_T),
        )


class _Balance(torch.autograd.Function):
    """The gradients are computed on the way forward, in the same pass over the rows."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: NativeKernels,
        logits_TE: Tensor,
        scores_TE: Tensor,
        visits: Visits,
        num_sequences: int,
        weights: tuple[float, float],
    ) -> Tensor:
        (T, E), K = logits_TE.shape, visits.experts_TK.shape[1]
        experts_TK, is_used_TK = visits.experts_TK, visits.is_used_TK
        for each, shape, dtype in (
            (logits_TE, (T, E), torch.float32),
            (scores_TE, (T, E), torch.float32),
            (experts_TK, (T, K), torch.int64),
            (is_used_TK, (T, K), torch.bool),
        ):
            assert each.is_contiguous()
            assert each.shape == shape
            assert each.dtype == dtype
        assert T % num_sequences == 0
        dlogits_TE, dscores_TE = torch.empty(2, T, E)
        sequence_weight, z_weight = weights
        work = kernels.native.BalanceRows(
            logits=logits_TE.data_ptr(),
            scores=scores_TE.data_ptr(),
            experts=experts_TK.data_ptr(),
            is_used=is_used_TK.data_ptr(),
            num_rows=T,
            num_experts=E,
            num_slots=K,
            num_sequences=num_sequences,
            sequence_weight=sequence_weight,
            z_weight=z_weight,
            dlogits=dlogits_TE.data_ptr(),
            dscores=dscores_TE.data_ptr(),
        )
        loss = kernels.library.differentiate_balance(work, torch.get_num_threads())
        ctx.save_for_backward(dlogits_TE, dscores_TE)
        return torch.tensor(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dlogits_TE, dscores_TE = (saved * grads[0] for saved in ctx.saved_tensors)
        return None, dlogits_TE, dscores_TE, None, None, None


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()
