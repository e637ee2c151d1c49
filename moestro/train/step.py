"""One training step: micro-batches -> loss -> gradients -> update -> biases and thresholds.

Everything random in a step follows from the seed and the step's number, so that a resumed run
repeats it. Next: loss.py, balance.py, budget.py.

Shapes: B sequences, W tokens of a window.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moestro.errors import ConfigError
from moestro.model.model import Transformer
from moestro.model.trace import Trace
from moestro.train.balance import Balancer
from moestro.train.budget import BudgetTable
from moestro.train.calibrate import rebalance, recalibrate
from moestro.train.config import TrainConfig
from moestro.train.loss import language_loss
from moestro.train.masters import Masters
from moestro.train.optimizer import Optimizers
from moestro.train.schedule import learning_rate_scale

# Enough documents for thresholds whose mean is right within a few thousandths, and for loads within
# a few hundredths of each expert's; at most an eighth of the run's own text.
_THRESHOLD_TOKENS = 1 << 16
_BALANCE_TOKENS = 1 << 18


@dataclass(frozen=True)
class StepResult:
    """What one step showed. Losses are nats per token; `violations` one per MoE layer."""

    loss: float
    mtp_loss: float | None
    grad_norm: float
    learning_rate: float
    mean_experts: float | None
    violations: list[float]


class Stepper:
    """A model in training and everything that changes with each step."""

    def __init__(self, model: Transformer, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.optimizers = Optimizers(model, config.optimizer)
        self.masters = Masters(model)
        self.gates = model.gates()
        self.balancer = Balancer(self.gates, config.balance)
        self.budget_table = BudgetTable(self.gates, model.config.fewest_experts)
        self.is_budget_drawn = config.is_budget_drawn and (
            model.config.fewest_experts < model.config.num_experts_per_tok
        )

    def run(self, step: int, window_BW: Tensor) -> StepResult:
        """Train on one batch of windows; ConfigError where that would destroy the weights."""
        budget_B = self._draw_budgets(step, window_BW.shape[0])
        size = self.config.micro_batches_of
        parts = zip(window_BW.split(size), _split(budget_B, size, window_BW), strict=True)
        with self.masters.lent():
            results = [
                self._backward(window, budget, size / window_BW.shape[0])
                for window, budget in parts
            ]
        scale = learning_rate_scale(step, self.config.steps, self.config.schedule)
        try:
            grad_norm = self.optimizers.apply(scale)
        except ConfigError as error:
            raise ConfigError(f"step {step + 1} would lose the model: {error}") from error
        violations = self.balancer.apply(scale)
        if self.is_budget_drawn:
            self.budget_table.apply(scale)
        nats = torch.tensor([result[0] for result in results]).mean(dim=0).tolist()
        return StepResult(
            loss=nats[0],
            mtp_loss=sum(nats[1:]) / len(nats[1:]) if nats[1:] else None,
            grad_norm=grad_norm,
            learning_rate=self.config.optimizer.learning_rate * scale,
            mean_experts=sum(result[1] for result in results) / len(results)
            if self.gates
            else None,
            violations=violations,
        )

    def settle(self, windows_of: Callable[[int], Tensor]) -> None:
        """Fit biases, then thresholds, to weights that stand still: means that run along lag.

        `windows_of` gives a step's batch; those of the steps behind the last are read.
        """
        if self.balancer.has_biases:
            sample = self._sample(windows_of, _BALANCE_TOKENS)
            rebalance(self.model, self.balancer, (tokens_BS for tokens_BS, _ in sample))
        if self.is_budget_drawn:
            recalibrate(self.model, self._sample(windows_of, _THRESHOLD_TOKENS))

    def _sample(
        self, windows_of: Callable[[int], Tensor], num_tokens: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        config, size = self.config, self.config.micro_batches_of
        num_steps = -(-num_tokens // (config.batch_size * config.seq_len))
        for step in range(config.steps, config.steps + min(num_steps, -(-config.steps // 8))):
            window_BW = windows_of(step)
            tokens_BS = window_BW[:, : config.seq_len]
            budget_B = self._draw_budgets(step, tokens_BS.shape[0])
            yield from zip(tokens_BS.split(size), _split(budget_B, size, window_BW), strict=True)

    def _backward(
        self, window_BW: Tensor, budget_B: Tensor | None, share: float
    ) -> tuple[list[float], float]:
        trace = Trace()
        losses = language_loss(self.model, window_BW, budget_B, trace, self.config.mtp_weight)
        total = losses.total
        mean_experts = 0.0
        if self.gates:
            self.balancer.observe(trace)
            total = total + self.balancer.loss(trace, window_BW.shape[0])
            mean_experts = sum(float(g.is_used_TK.sum(dim=1).float().mean()) for g in trace.gates)
        (total * share).backward()
        if self.is_budget_drawn:
            self.budget_table.observe(trace)
        return losses.nats, mean_experts / max(1, len(trace.gates))

    def _draw_budgets(self, step: int, num_sequences: int) -> Tensor | None:
        if not self.is_budget_drawn:
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        fewest, most = self.model.config.fewest_experts, self.model.config.num_experts_per_tok
        # One draw in each of B equal intervals: every batch covers the whole range.
        draws_B = (
            torch.randperm(num_sequences, generator=generator)
            + torch.rand(num_sequences, generator=generator)
        ) / num_sequences
        return fewest + draws_B * (most - fewest)


def _split(budget_B: Tensor | None, size: int, window_BW: Tensor) -> list[Tensor | None]:
    if budget_B is None:
        return [None] * (window_BW.shape[0] // size)
    return list(budget_B.split(size))
