"""Learning the budget's thresholds: running quantiles of the scores that let further experts in.

With m experts always taken and K at most, the mean of a budget that lets in a share f of all
further slots is m + f (K - m). So the threshold for f is the (1 - f) quantile of the further slots'
relative scores, whatever they are.
Next: model/gate.py for its use; calibrate.py for weights that stand still.

Shapes: T tokens, K slots, F further slots, L MoE layers, N grid points, M samples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moestro.model.config import BudgetConfig
from moestro.model.gate import Gate, further_scores
from moestro.model.trace import Trace

# Denser at the ends, where quantiles are steepest.
FRACTIONS = (0.0, 1 / 64, 1 / 32, *(i / 16 for i in range(1, 16)), 31 / 32, 63 / 64, 1.0)
# The newest step's weight in the running mean, at the full learning rate.
RATE = 0.1
_LEAST_SCALE = 0.2
_MOST_SAMPLES = 1 << 18


class BudgetTable:
    """The running quantiles of one model in training; writes them into its gates."""

    def __init__(self, gates: Sequence[Gate], fewest: int) -> None:
        self.gates = gates
        self.fewest = fewest
        self._seen: list[list[Tensor]] = [[] for _ in gates]

    def observe(self, trace: Trace) -> None:
        """Take one micro-batch's quantiles."""
        for layer, record in enumerate(trace.gates):
            further_TF = further_scores(record.ranked_TK, self.fewest)
            self._seen[layer].append(further_quantiles(further_TF, FRACTIONS))

    def apply(self, scale: float = 1.0) -> None:
        """Move the gates' tables towards what the step's micro-batches showed.

        `scale` is the step's share of the full learning rate, as for the biases.
        """
        for gate, seen in zip(self.gates, self._seen, strict=True):
            fresh_N = torch.stack(seen).mean(dim=0)
            if gate.thresholds_N.numel() == 0:
                gate.fractions_N = torch.tensor(FRACTIONS, device=fresh_N.device)
                gate.thresholds_N = fresh_N
            else:
                gate.thresholds_N = gate.thresholds_N.lerp(fresh_N, RATE * max(scale, _LEAST_SCALE))
            seen.clear()


def further_quantiles(further_TF: Tensor, fractions: Sequence[float]) -> Tensor:
    """Return the thresholds_N that let in given shares of the further slots' scores."""
    # Whole tokens are left out: slots are ranked, so that some columns alone would mislead.
    stride = -(-further_TF.numel() // _MOST_SAMPLES)
    scores_M = _ascending(further_TF[::stride].flatten())
    place_N = (1 - torch.tensor(fractions, device=scores_M.device)) * (len(scores_M) - 1)
    below_N = place_N.floor().long()
    above_N = (below_N + 1).clamp(max=len(scores_M) - 1)
    return scores_M[below_N].lerp(scores_M[above_N], place_N - below_N)


def _ascending(scores_M: Tensor) -> Tensor:
    # numpy sorts with AVX-512, thirty times as fast as torch does on one thread.
    if scores_M.is_cpu:
        return torch.from_numpy(np.sort(scores_M.numpy()))
    return scores_M.sort().values


def table_of(gates: Sequence[Gate]) -> BudgetConfig:
    """Return the gates' tables as configuration."""
    if not gates or gates[0].thresholds_N.numel() == 0:
        return BudgetConfig()
    return BudgetConfig(
        fractions=tuple(gates[0].fractions_N.tolist()),
        thresholds=tuple(tuple(gate.thresholds_N.tolist()) for gate in gates),
    )
