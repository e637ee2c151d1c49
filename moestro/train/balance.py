"""Keeping experts equally busy: biases that steer the choice, and losses that teach the gate.

One method at a time, a bias method with a small sequence-wise loss beside it. Biases go by the
whole batch of a step, micro-batches included; the global-batch loss of a micro-batch by those up to
it, as the paper buffers them. No token is ever dropped.
Next: step.py; what the methods cost and give is in docs/log.md.

Shapes: T tokens, K slots, E experts, S sequences, M tokens of a sequence.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moestro.model.gate import Gate
from moestro.model.trace import GateRecord, Trace
from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.kernels import Visits
from moestro.ops.native import NativeKernels
from moestro.ops.scoring import balance_loss
from moestro.train.config import BalanceConfig

_BIAS_METHODS = ("proportional", "sign", "quantile")
# Biases follow this much of their rate when the learning rate has fallen to nothing.
_LEAST_SCALE = 0.05


class Balancer:
    """Watches the gates of one model through a step, then corrects their biases."""

    def __init__(self, gates: Sequence[Gate], config: BalanceConfig) -> None:
        self.gates = gates
        self.config = config
        self._counts: list[Tensor] = []
        self._targets: list[list[Tensor]] = []
        self._lacks: list[list[Tensor]] = []
        self.forget()

    @property
    def has_biases(self) -> bool:
        """Whether there are biases that the method steers by."""
        has_any = any(gate.e_score_correction_bias is not None for gate in self.gates)
        return has_any and self.config.method in _BIAS_METHODS

    def loss(self, trace: Trace, num_sequences: int) -> Tensor:
        """Return the weighted auxiliary losses of one micro-batch; call `observe` with it first."""
        config = self.config
        sequence_weight = {"sequence_aux": config.weight} | dict.fromkeys(
            _BIAS_METHODS, config.sequence_weight
        )
        weights = sequence_weight.get(config.method, 0.0), config.router_z_weight
        total = trace.gates[0].logits_TE.new_zeros(())
        for record, counts_E in zip(trace.gates, self._counts, strict=True):
            if config.method == "global_aux":
                total = total + config.weight * global_batch_loss(record, counts_E)
            if any(weights):
                total = total + row_losses(record, num_sequences, weights)
        return total

    def observe(self, trace: Trace) -> None:
        """Add one micro-batch to the step's statistics."""
        for layer, record in enumerate(trace.gates):
            self._counts[layer] += record.counts_E
            if self.config.method == "quantile":
                self._targets[layer].append(quantile_bias(record))
            elif self.config.method == "proportional":
                self._lacks[layer].append(share_lacking(record))

    def apply(self, scale: float = 1.0) -> list[float]:
        """Correct the biases, begin a new step, return each layer's load violation in the old.

        `scale` is the step's share of the full learning rate: the slower the weights move, the more
        steps a bias may average over. One batch's documents are too few to judge loads by.
        """
        rate = self.config.rate * max(scale, _LEAST_SCALE)
        for layer, gate in enumerate(self.gates):
            bias_E = gate.e_score_correction_bias
            if bias_E is None:
                continue
            if self.config.method == "sign":
                counts_E = self._counts[layer]
                bias_E += rate * torch.sign(counts_E.mean() - counts_E)
            elif self.config.method == "quantile":
                bias_E.lerp_(torch.stack(self._targets[layer]).mean(dim=0), rate)
            elif self.config.method == "proportional":
                bias_E += rate * torch.stack(self._lacks[layer]).mean(dim=0)
            # Only differences matter to the choice; a drifting mean would only cost precision.
            bias_E -= bias_E.mean()
        violations = [load_violation(counts_E) for counts_E in self._counts]
        self.forget()
        return violations

    def forget(self) -> None:
        """Begin a new step's statistics."""
        device = self.gates[0].weight.device if self.gates else None
        self._counts = [torch.zeros(gate.weight.shape[0], device=device) for gate in self.gates]
        self._targets = [[] for _ in self.gates]
        self._lacks = [[] for _ in self.gates]


def load_violation(counts_E: Tensor) -> float:
    """Return max load / mean load - 1 (MaxVio, arXiv 2408.15664)."""
    return float(counts_E.max() / counts_E.mean().clamp(min=1e-9) - 1)


def share_lacking(record: GateRecord) -> Tensor:
    """Return the share of these tokens that each expert lacks to an equal share.

    Its mean over batches is 0 exactly where the mean loads are equal, however much the documents of
    one batch differ from the next's. Neither a sign nor a quantile has that property. Loads are
    means of those at the tokens' own budgets and those at all K experts, as one bias serves both.
    """
    num_tokens, num_experts = record.selection_TE.shape
    at_most_E = record.experts_TK.flatten().bincount(minlength=num_experts)
    counts_E = (record.counts_E + at_most_E) / 2
    return (counts_E.mean() - counts_E) / num_tokens


def quantile_bias(record: GateRecord) -> Tensor:
    """Return the bias that gives each expert its equal share of these tokens.

    It is one dual step of quantile balancing. A token's border lies midway between its last chosen
    and first refused expert. An expert's bias is what lifts just its share of tokens over the
    border.
    """
    ranked_TE = record.selection_TE.sort(dim=-1, descending=True).values
    num_chosen_T1 = record.is_used_TK.sum(dim=-1, keepdim=True)
    num_experts = ranked_TE.shape[1]
    last_in = ranked_TE.gather(1, num_chosen_T1 - 1)
    first_out = ranked_TE.gather(1, num_chosen_T1.clamp(max=num_experts - 1))
    # Groups may leave no expert to refuse.
    first_out = first_out.where(first_out.isfinite(), last_in)
    margin_TE = record.scores_TE.detach() - (last_in + first_out) / 2
    share = record.is_used_TK.sum() / record.selection_TE.numel()
    num_tokens = margin_TE.shape[0]
    rank = min(max(round(num_tokens * (1 - float(share))), 1), num_tokens)
    # Along contiguous rows a selection costs a fiftieth of torch.quantile's sort.
    return -margin_TE.T.contiguous().kthvalue(rank, dim=1).values


def global_batch_loss(record: GateRecord, counts_E: Tensor) -> Tensor:
    """Return E sum_i f_i P_i with the loads f of the batch so far (arXiv 2501.11873)."""
    probability_E = (record.scores_TE / record.scores_TE.sum(dim=-1, keepdim=True)).mean(dim=0)
    return counts_E.numel() * (counts_E / counts_E.sum() * probability_E).sum()


def row_losses(record: GateRecord, num_sequences: int, weights: tuple[float, float]) -> Tensor:
    """Return the sequence-wise loss and the z-loss, summed by their weights."""
    kernels = native_for(record.logits_TE, torch.float32, find_fault)
    if kernels is None:
        return _row_losses_by_torch(record, num_sequences, weights)
    visits = Visits(record.experts_TK, record.weights_TK, record.is_used_TK)
    gate = record.logits_TE, record.scores_TE
    return balance_loss(kernels, gate, visits, num_sequences, weights)


def _row_losses_by_torch(
    record: GateRecord, num_sequences: int, weights: tuple[float, float]
) -> Tensor:
    return weights[0] * sequence_loss(record, num_sequences) + weights[1] * z_loss(record)


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare the native losses with their twins."""
    T, E, K, num_sequences, weights = 60, 8, 2, 3, (0.5, 0.1)
    logits_TE = draw(T, E, dtype=torch.float32)
    experts_TK = logits_TE.topk(K).indices
    is_used_TK = draw(T, K, seed=1) > -0.5

    def native(logits_TE: Tensor, scores_TE: Tensor) -> Tensor:
        visits = Visits(experts_TK, is_used_TK.float(), is_used_TK)
        return balance_loss(kernels, (logits_TE, scores_TE), visits, num_sequences, weights)

    def twin(logits_TE: Tensor, scores_TE: Tensor) -> Tensor:
        # What the losses do not look at may be anything.
        none = logits_TE.new_empty(0)
        record = GateRecord(logits_TE, scores_TE, none, none, experts_TK, none, is_used_TK)
        return _row_losses_by_torch(record, num_sequences, weights)

    return compare("losses of balance", native, twin, [logits_TE, logits_TE.sigmoid()])


def sequence_loss(record: GateRecord, num_sequences: int) -> Tensor:
    """Return DeepSeek-V3's complementary loss, balance within each sequence.

    Eq. 17-20 of arXiv 2412.19437, with the loads of the experts that tokens visit, as biases and
    budgets have it; eq. 18 counts the K highest affinities whatever the bias.
    """
    E = record.scores_TE.shape[1]
    normed_TE = record.scores_TE / record.scores_TE.sum(dim=-1, keepdim=True)
    probability_SE = normed_TE.view(num_sequences, -1, E).mean(dim=1)
    is_chosen_TE = torch.zeros_like(normed_TE).scatter(
        1, record.experts_TK, record.is_used_TK.to(normed_TE)
    )
    loads_SE = is_chosen_TE.view(num_sequences, -1, E).sum(dim=1)
    loads_SE = loads_SE / loads_SE.sum(dim=1, keepdim=True)
    return E * (loads_SE * probability_SE).sum(dim=1).mean()


def z_loss(record: GateRecord) -> Tensor:
    """Return mean(logsumexp(logits)^2), which keeps the gate's logits small.

    From ST-MoE (arXiv 2202.08906).
    """
    return record.logits_TE.logsumexp(dim=-1).square().mean()
