"""The gate: which experts a token visits, how many, and with what weights.

Eq. 12-16 of arXiv 2412.19437. Scores are pure functions of the token; the number of experts depends
on the token and its own budget, never on the other tokens of a batch. Next: experts.py, moe.py.

Shapes: T tokens, D width, E experts, G groups, K slots (`num_experts_per_tok`), F further slots
(those beyond the fewest), N grid points of the budget.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moestro.model.config import ModelConfig
from moestro.model.trace import GateRecord, Trace
from moestro.ops.kernels import Kernels, Packed
from moestro.ops.packing import pack
from moestro.ops.scoring import Choosing, gate_kernels, route


class ExpertChoice(NamedTuple):
    """Each token's experts, best first, their weights (0 where not in use), and slots in use."""

    experts_TK: Tensor
    weights_TK: Tensor
    is_used_TK: Tensor


class Gate(nn.Module):
    """Scores all experts for each token; keeps the best two to four (or as many as configured)."""

    e_score_correction_bias: Tensor | None
    thresholds_N: Tensor
    fractions_N: Tensor

    def __init__(self, config: ModelConfig, moe_layer: int) -> None:
        super().__init__()
        self.config = config
        self.moe_layer = moe_layer
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias = torch.zeros(config.n_routed_experts) if config.has_balance_bias else None
        self.packed: Packed | None = None
        self.register_buffer("e_score_correction_bias", bias)
        self.register_buffer("fractions_N", torch.empty(0), persistent=False)
        self.register_buffer("thresholds_N", torch.empty(0), persistent=False)
        self.reset_tables()

    def reset_tables(self) -> None:
        """Fill the budget table from the configuration, on the device of the weights."""
        table = self.config.budget
        device = self.weight.device
        row = table.thresholds[self.moe_layer] if self.config.has_budget else ()
        self.fractions_N = torch.tensor(table.fractions if row else (), device=device)
        self.thresholds_N = torch.tensor(row, device=device)

    def forward(self, x_TD: Tensor, fraction_T: Tensor | None, trace: Trace | None) -> ExpertChoice:
        """Choose experts for each token within its budget."""
        record = self._route(x_TD, fraction_T)
        if trace is not None:
            trace.gates.append(record)
        return ExpertChoice(record.experts_TK, record.weights_TK, record.is_used_TK)

    def prepare(self, kernels: Kernels) -> None:
        """Pack the weight, in float32 whatever the model's kind."""
        self.packed = Packed(kernels, pack(self.weight[None], "float32", kernels))

    def further(self, x_TD: Tensor) -> Tensor:
        """Return each token's further_TF, with which thresholds are compared."""
        return further_scores(self._route(x_TD, None).ranked_TK, self.config.fewest_experts)

    def threshold(self, fraction_T: Tensor) -> Tensor:
        """Look up what a further expert's relative score must pass: linear between grid points.

        A fraction of 0 lets no further expert in, a fraction of 1 lets in all. Without a table
        every budget means all experts.
        """
        if self.thresholds_N.numel() == 0:
            return torch.full_like(fraction_T, -torch.inf)
        above = torch.searchsorted(self.fractions_N, fraction_T).clamp(1, len(self.fractions_N) - 1)
        low, high = self.fractions_N[above - 1], self.fractions_N[above]
        share_T = (fraction_T - low) / (high - low)
        threshold_T = torch.lerp(self.thresholds_N[above - 1], self.thresholds_N[above], share_T)
        threshold_T = threshold_T.masked_fill(fraction_T <= 0, torch.inf)
        return threshold_T.masked_fill(fraction_T >= 1, -torch.inf)

    def _route(self, x_TD: Tensor, fraction_T: Tensor | None) -> GateRecord:
        kernels = None if self.packed is not None else gate_kernels(x_TD, self.weight)
        if kernels is not None:
            choosing = Choosing(
                choice_rule(self.config),
                self.e_score_correction_bias,
                fraction_T,
                self.fractions_N,
                self.thresholds_N,
            )
            return GateRecord(*route(kernels, x_TD, self.weight, choosing))
        if self.packed is None:
            logits_TE = F.linear(x_TD.float(), self.weight.float())
        else:
            logits_TE = self.packed.linear(x_TD.float())
        scores_TE = self._affinities(logits_TE)
        selection_TE = scores_TE.detach()
        if self.e_score_correction_bias is not None:
            selection_TE = selection_TE + self.e_score_correction_bias
        selection_TE = limit_groups(selection_TE, self.config)
        threshold_T = None if fraction_T is None else self.threshold(fraction_T)
        ranked_TK, choice = choose(scores_TE, selection_TE, threshold_T, self.config)
        return GateRecord(logits_TE, scores_TE, selection_TE, ranked_TK, *choice)

    def _affinities(self, logits_TE: Tensor) -> Tensor:
        if self.config.scoring_func == "softmax":
            return logits_TE.softmax(dim=-1)
        return (
            logits_TE.sigmoid() if self.packed is None else self.packed.kernels.sigmoid(logits_TE)
        )


def choice_rule(config: ModelConfig) -> dict[str, Any]:
    """Return what the native kernels choose by: the fields of their ChoiceRule."""
    has_groups = _has_groups(config)
    return {
        "num_slots": config.num_experts_per_tok,
        "fewest": config.fewest_experts,
        "num_expert_groups": config.n_group if has_groups else 1,
        "topk_group": config.topk_group if has_groups else 1,
        "best_of_group": _best_of_group(config),
        "is_sigmoid": config.scoring_func == "sigmoid",
        "is_normalized": config.has_normalized_gate,
        "routed_scaling_factor": config.gate_scale,
    }


def limit_groups(selection_TE: Tensor, config: ModelConfig) -> Tensor:
    """Rule out all experts but those of each token's `topk_group` best groups."""
    if not _has_groups(config):
        return selection_TE
    T, E = selection_TE.shape
    grouped_TGM = selection_TE.view(T, config.n_group, E // config.n_group)
    group_TG = grouped_TGM.topk(_best_of_group(config), dim=-1).values.sum(dim=-1)
    kept = group_TG.topk(config.topk_group, dim=-1).indices
    is_out_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter(1, kept, False)
    return grouped_TGM.masked_fill(is_out_TG[..., None], -torch.inf).view(T, E)


def _has_groups(config: ModelConfig) -> bool:
    return config.n_group > 1 and config.topk_method != "greedy"


def _best_of_group(config: ModelConfig) -> int:
    # V3 scores a group by the sum of its best two, V2 by its best.
    return 2 if config.topk_method == "noaux_tc" else 1


def choose(
    scores_TE: Tensor, selection_TE: Tensor, threshold_T: Tensor | None, config: ModelConfig
) -> tuple[Tensor, ExpertChoice]:
    """Take the fewest experts always, further ones if their relative score passes the threshold.

    Returns the K best selection scores, best first, and the choice. Weights come from `scores_TE`,
    which carries gradients; the choice itself has none.
    """
    ranked_TK, experts_TK = selection_TE.topk(config.num_experts_per_tok, dim=-1)
    is_used_TK = torch.ones_like(experts_TK, dtype=torch.bool)
    if threshold_T is not None:
        fewest = config.fewest_experts
        is_used_TK[:, fewest:] = further_scores(ranked_TK, fewest) > threshold_T[:, None]
    weights_TK = scores_TE.gather(1, experts_TK) * is_used_TK
    if config.has_normalized_gate:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
    weights_TK = weights_TK * config.gate_scale
    return ranked_TK, ExpertChoice(experts_TK, weights_TK, is_used_TK)


def further_scores(ranked_TK: Tensor, fewest: int) -> Tensor:
    """Return further_TF: the further slots' selection scores, less the last certain expert's.

    From text to text the level of all scores moves far more than the distances within a token, so
    that thresholds on distances keep their mean where thresholds on scores do not.
    """
    return ranked_TK[:, fewest:] - ranked_TK[:, fewest - 1 : fewest]
