"""A record of what the gates did in one pass, for balance, budgets, reports and x-rays.

Knows gates' outputs, not what is made of them. Next: gate.py.

Shapes: T tokens, K slots per token, E experts.
"""

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class GateRecord:
    """One gate's pass: `selection_TE` is what it chose by, `ranked_TK` its best K, best first."""

    logits_TE: Tensor
    scores_TE: Tensor
    selection_TE: Tensor
    ranked_TK: Tensor
    experts_TK: Tensor
    weights_TK: Tensor
    is_used_TK: Tensor

    @cached_property
    def counts_E(self) -> Tensor:
        """How many tokens each expert served, as float32."""
        is_used = self.is_used_TK.flatten().float()
        num_experts = self.scores_TE.shape[1]
        return self.experts_TK.flatten().bincount(weights=is_used, minlength=num_experts)


@dataclass
class Trace:
    """Gate records in the order of the MoE layers; MTP modules come last."""

    gates: list[GateRecord] = field(default_factory=list)
