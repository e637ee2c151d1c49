"""Next-token loss of the main model and of the MTP modules, through one pass of the shared head.

Next: ops/cross_entropy.py, step.py.

Shapes: B sequences, S tokens, W = S + 1 + MTP depth tokens of a window, D width,
T rows of the head.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from moestro.model.model import Transformer
from moestro.model.trace import Trace
from moestro.ops.cross_entropy import linear_cross_entropy
from moestro.ops.grouped import FEW_SHAPES


@dataclass(frozen=True)
class Losses:
    """`total` carries gradients; means are nats per token for each depth, main model's first."""

    total: Tensor
    nats: list[float]


def window_length(model: Transformer, seq_len: int) -> int:
    """Return how many tokens a training window needs: inputs, the last target, MTP targets."""
    return seq_len + 1 + len(model.mtp)


def language_loss(
    model: Transformer, window_BW: Tensor, budget_B: Tensor | None, trace: Trace, mtp_weight: float
) -> Losses:
    """Return the mean loss over a window.

    MTP modules' losses are weighted by `mtp_weight` over their number (eq. 24-25).
    """
    depth = len(model.mtp)
    S = window_BW.shape[1] - 1 - depth
    look_ahead = partial(model.look_ahead, budget=budget_B, trace=trace, row_multiple=FEW_SHAPES)
    states = [model(window_BW[:, :S], budget=budget_B, trace=trace, row_multiple=FEW_SHAPES)]
    for k in range(depth):
        states.append(look_ahead(states[-1], window_BW[:, k + 1 : k + 1 + S], k))
    targets = [window_BW[:, k + 1 : k + 1 + S].reshape(-1) for k in range(depth + 1)]
    shares = [1.0] + [mtp_weight / max(depth, 1)] * depth
    weights_T = torch.cat(
        [
            torch.full(t.shape, share / t.numel(), device=t.device)
            for t, share in zip(targets, shares, strict=True)
        ]
    )
    rows = [state.reshape(-1, state.shape[-1]) for state in states]
    rows_TD = torch.cat(rows) if depth else rows[0]
    total, nats_T = linear_cross_entropy(
        rows_TD, model.head_weight(), torch.cat(targets), weights_T
    )
    return Losses(total, [float(part.mean()) for part in nats_T.split(targets[0].numel())])
