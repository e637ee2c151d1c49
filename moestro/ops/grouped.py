"""Experts' SwiGLU over tokens sorted by expert: forward and backward as plain matrix products.

`apply_experts` is the fast path and `apply_experts_one_by_one` its specification. Knows pairs of a
token and an expert, not how they were chosen. Next: model/experts.py.

Shapes: T tokens, K slots per token, D width, E experts, F expert width, P pairs (those in use, at
most T * K, and what fills experts up).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# For callers that multiply many tokens: the library compiles and keeps a kernel for every number of
# rows that it meets, which costs as much as the product. Few numbers, few kernels.
FEW_SHAPES = 32


@dataclass(frozen=True)
class Pairs:
    """Which tokens each expert serves: pairs sorted by expert, tokens in order within an expert.

    `token_P` names each pair's token; `slot_TK` says where a token's k-th pair lies in that order,
    P for a slot that is not in use; `borders[e]:borders[e + 1]` are expert e's pairs, filled up
    with pairs that no slot names where its number must be a multiple of something.
    """

    token_P: Tensor
    slot_TK: Tensor
    borders: list[int]


def sort_pairs(
    experts_TK: Tensor, is_used_TK: Tensor, num_experts: int, multiple: int = 1
) -> Pairs:
    """Sort the (token, expert) pairs in use by expert, each expert's filled up to a multiple."""
    T, K = experts_TK.shape
    # Unused slots go to a bucket of their own, behind the last expert. int16 sorts faster than
    # int64.
    buckets = experts_TK.masked_fill(~is_used_TK, num_experts).flatten().to(torch.int16)
    buckets, order = torch.sort(buckets, stable=True)
    counts_E = torch.bincount(buckets.long(), minlength=num_experts + 1)[:num_experts]
    filled_E = (counts_E + multiple - 1) // multiple * multiple
    borders = [0, *filled_E.cumsum(0).tolist()]
    P, num_used = borders[-1], int(counts_E.sum())
    place = torch.arange(T * K, device=experts_TK.device)
    if num_used < P:
        fill_E = (filled_E - counts_E).cumsum(0) - (filled_E - counts_E)
        place[:num_used] += fill_E[buckets[:num_used].long()]
    place[num_used:] = P
    token_P = order.new_zeros(P)
    token_P[place[:num_used]] = torch.div(order[:num_used], K, rounding_mode="floor")
    slot = torch.empty_like(order)
    slot[order] = place
    return Pairs(token_P=token_P, slot_TK=slot.view(T, K), borders=borders)


def apply_experts(
    x_TD: Tensor, weights_TK: Tensor, pairs: Pairs, gate_up_EGD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Return sum over a token's slots of weight * expert(x), with G = 2F rows: gate first, then up.

    All floating tensors have one dtype. Differentiable in `x_TD`, `weights_TK` and both weights.
    """
    out: Tensor = _Experts.apply(x_TD, weights_TK, pairs, gate_up_EGD, down_EDF)
    return out


def apply_experts_one_by_one(
    x_TD: Tensor, weights_TK: Tensor, pairs: Pairs, gate_up_EGD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Do the same, one expert after the other, leaving the backward pass to autograd."""
    out_TD = torch.zeros_like(x_TD)
    weights_P = torch.empty_like(weights_TK[:, 0]).new_zeros(pairs.borders[-1] + 1)
    weights_P = weights_P.index_put((pairs.slot_TK.flatten(),), weights_TK.flatten())
    for expert in range(gate_up_EGD.shape[0]):
        rows = slice(pairs.borders[expert], pairs.borders[expert + 1])
        token_N = pairs.token_P[rows]
        gate_NF, up_NF = F.linear(x_TD[token_N], gate_up_EGD[expert]).chunk(2, dim=-1)
        out_ND = F.linear(F.silu(gate_NF) * up_NF, down_EDF[expert])
        out_TD = out_TD.index_add(0, token_N, out_ND * weights_P[rows, None])
    return out_TD


class _Experts(torch.autograd.Function):
    """Weights scale hidden activations, not the output: none is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        pairs: Pairs,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
    ) -> Tensor:
        D = x_TD.shape[1]
        P, G = pairs.borders[-1], gate_up_EGD.shape[1]
        x_PD = x_TD.index_select(0, pairs.token_P)
        weights_P = _by_pair(weights_TK, pairs)
        hidden_PG = x_TD.new_empty(P, G)
        out_PD = x_TD.new_empty(P + 1, D)
        out_PD[P] = 0
        for expert, rows in _rows(pairs):
            torch.mm(x_PD[rows], gate_up_EGD[expert].T, out=hidden_PG[rows])
            gate_NF, up_NF = hidden_PG[rows].chunk(2, dim=-1)
            active_NF = F.silu(gate_NF).mul_(up_NF).mul_(weights_P[rows, None])
            torch.mm(active_NF, down_EDF[expert].T, out=out_PD[rows])
        ctx.pairs = pairs
        ctx.save_for_backward(x_PD, weights_P, hidden_PG, gate_up_EGD, down_EDF)
        return _combine(out_PD, pairs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_PD, weights_P, hidden_PG, gate_up_EGD, down_EDF = ctx.saved_tensors
        pairs, P = ctx.pairs, x_PD.shape[0]
        dout_PD = grads[0].index_select(0, pairs.token_P)
        dx_PD = x_PD.new_empty(P + 1, x_PD.shape[1])
        dx_PD[P] = 0
        dweights_P = weights_P.new_zeros(P + 1)
        dgate_up, ddown = torch.empty_like(gate_up_EGD), torch.empty_like(down_EDF)
        for expert in _idle(pairs):
            dgate_up[expert], ddown[expert] = 0, 0
        for expert, rows in _rows(pairs):
            active_NF, dhidden_NG, dweights_P[rows] = _activation_backward(
                hidden_PG[rows], dout_PD[rows] @ down_EDF[expert], weights_P[rows, None]
            )
            torch.mm(dout_PD[rows].T, active_NF, out=ddown[expert])
            torch.mm(dhidden_NG.T, x_PD[rows], out=dgate_up[expert])
            torch.mm(dhidden_NG, gate_up_EGD[expert], out=dx_PD[rows])
        return _combine(dx_PD, pairs), dweights_P[pairs.slot_TK], None, dgate_up, ddown


def _activation_backward(
    hidden_NG: Tensor, dscaled_NF: Tensor, weights_N1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gate_NF, up_NF = hidden_NG.chunk(2, dim=-1)
    sigmoid_NF = gate_NF.sigmoid()
    silu_NF = gate_NF * sigmoid_NF
    active_NF = silu_NF * up_NF
    dweights_N = (dscaled_NF * active_NF).sum(dim=-1)
    dactive_NF = dscaled_NF * weights_N1
    dhidden_NG = torch.empty_like(hidden_NG)
    dgate_NF, dup_NF = dhidden_NG.chunk(2, dim=-1)
    torch.mul(dactive_NF, silu_NF, out=dup_NF)
    # d silu(g) / dg = sigmoid(g) (1 + g (1 - sigmoid(g))) = sigmoid + silu - silu sigmoid
    slope_NF = torch.addcmul(sigmoid_NF + silu_NF, silu_NF, sigmoid_NF, value=-1)
    torch.mul(dactive_NF.mul_(up_NF), slope_NF, out=dgate_NF)
    return active_NF.mul_(weights_N1), dhidden_NG, dweights_N


def _rows(pairs: Pairs) -> list[tuple[int, slice]]:
    spans = enumerate(zip(pairs.borders, pairs.borders[1:], strict=False))
    return [(expert, slice(start, end)) for expert, (start, end) in spans if end > start]


def _idle(pairs: Pairs) -> list[int]:
    spans = enumerate(zip(pairs.borders, pairs.borders[1:], strict=False))
    return [expert for expert, (start, end) in spans if end == start]


def _by_pair(weights_TK: Tensor, pairs: Pairs) -> Tensor:
    weights_P = weights_TK.new_zeros(pairs.borders[-1] + 1)
    weights_P[pairs.slot_TK] = weights_TK
    return weights_P[:-1]


def _combine(rows_PD: Tensor, pairs: Pairs) -> Tensor:
    # A gather in slot order, not a scatter: every token's sum has a fixed order, whatever its
    # neighbours do.
    return F.embedding_bag(pairs.slot_TK, rows_PD, mode="sum")
