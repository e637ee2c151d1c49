"""Budget tables and balance from sample text and weights that stand still.

`calibrate` is for a checkpoint that was trained without a table: one pass over the sample for each
budget, in which every gate sets its threshold from the scores that reach it, so that a layer's
threshold already knows what the layers before it leave out. `recalibrate` is for the end of a run,
whose table is nearly right: one pass, budgets mixed as in training. `rebalance` comes before it:
biases that run along see only a few documents at a time, and weights that still move. It is for
all experts, which a model takes unless somebody says otherwise: one bias cannot serve two budgets.
Next: budget.py for the arithmetic.

Shapes: B sequences, S tokens, T tokens of all, D width, F further slots, N grid points.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from moestro.errors import ConfigError, DataError
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.gate import Gate, further_scores
from moestro.model.model import Transformer
from moestro.model.trace import Trace
from moestro.train.balance import Balancer
from moestro.train.budget import FRACTIONS, further_quantiles, table_of

# A bias follows this many tokens at once, and so many corrections before their steps are halved.
_CORRECTION_TOKENS = 1 << 13
_FULL_CORRECTIONS = 8


@torch.no_grad()
def calibrate(model: Transformer, tokens_BS: Tensor, fewest: int) -> ModelConfig:
    """Learn thresholds on sample windows, put them into the model's gates, return its new shape."""
    most = model.config.num_experts_per_tok
    if not 1 <= fewest < most:
        raise ConfigError(f"min_experts_per_tok is {fewest}: it must lie between 1 and {most - 1}")
    if tokens_BS.numel() < 1000:
        raise DataError(
            f"the sample has {tokens_BS.numel()} tokens: calibration needs 1,000 or more"
        )
    model.config = dataclasses.replace(
        model.config, min_experts_per_tok=fewest, budget=_open_table(model.config)
    )
    gates = model.gates()
    for gate in gates:
        gate.config = model.config
        gate.reset_tables()
    for position, fraction in enumerate(FRACTIONS):
        _calibrate_one(model, gates, tokens_BS, position, fraction)
    model.config = model.config.with_budget(table_of(gates))
    return model.config


@torch.no_grad()
def rebalance(model: Transformer, balancer: Balancer, sample: Iterable[Tensor]) -> None:
    """Go on correcting the gates' biases over tokens_BS at all experts, by ever smaller steps."""
    num_tokens, num_corrections = 0, 0
    for tokens_BS in sample:
        trace = Trace()
        _read(model, tokens_BS, None, trace)
        balancer.observe(trace)
        num_tokens += tokens_BS.numel()
        if num_tokens >= _CORRECTION_TOKENS:
            num_corrections += 1
            balancer.apply(_FULL_CORRECTIONS / (_FULL_CORRECTIONS + num_corrections))
            num_tokens = 0
    balancer.forget()


@torch.no_grad()
def recalibrate(model: Transformer, sample: Iterable[tuple[Tensor, Tensor | None]]) -> None:
    """Learn the gates' thresholds anew from pairs of tokens_BS and each sequence's budget_B."""
    gates, fewest = model.gates(), model.config.fewest_experts
    seen: list[list[Tensor]] = [[] for _ in gates]
    for tokens_BS, budget_B in sample:
        trace = Trace()
        _read(model, tokens_BS, budget_B, trace)
        for further, record in zip(seen, trace.gates, strict=True):
            further.append(further_scores(record.ranked_TK, fewest))
    for gate, further in zip(gates, seen, strict=True):
        gate.fractions_N = torch.tensor(FRACTIONS, device=gate.weight.device)
        gate.thresholds_N = further_quantiles(torch.cat(further), FRACTIONS)


def _open_table(config: ModelConfig) -> BudgetConfig:
    if config.budget.fractions == FRACTIONS:
        return config.budget
    return BudgetConfig(
        fractions=FRACTIONS, thresholds=((0.0,) * len(FRACTIONS),) * config.num_moe_layers
    )


def _calibrate_one(
    model: Transformer, gates: Sequence[Gate], tokens_BS: Tensor, position: int, fraction: float
) -> None:
    def set_threshold(gate: Gate, inputs: tuple[Tensor, ...]) -> None:
        gate.thresholds_N[position] = further_quantiles(gate.further(inputs[0]), (fraction,))[0]

    fewest, most = model.config.fewest_experts, model.config.num_experts_per_tok
    hooks = [gate.register_forward_pre_hook(set_threshold) for gate in gates]
    try:
        _read(model, tokens_BS, fewest + fraction * (most - fewest), None)
    finally:
        for hook in hooks:
            hook.remove()


def _read(
    model: Transformer, tokens_BS: Tensor, budget: float | Tensor | None, trace: Trace | None
) -> None:
    """Pass tokens through every gate, MTP modules' included."""
    hidden_BSD = model(tokens_BS, budget=budget, trace=trace)
    for depth in range(len(model.mtp)):
        hidden_BSD = model.look_ahead(
            hidden_BSD[:, :-1], tokens_BS[:, depth + 1 :], depth, budget=budget, trace=trace
        )
