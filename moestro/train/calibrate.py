"""A budget table for a checkpoint that was trained without one, from sample text.

For each budget one pass over the sample: every gate sets its threshold from the scores that reach
it, so a layer's threshold already knows what the layers before it leave out.
Next: budget.py for the arithmetic.

Shapes: T tokens, D width, N grid points.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from moestro.errors import ConfigError, DataError
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.gate import Gate
from moestro.model.model import Transformer
from moestro.train.budget import FRACTIONS, further_quantiles, table_of


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
        further = gate.ranked(inputs[0])[:, fewest:]
        gate.thresholds_N[position] = further_quantiles(further, (fraction,))[0]

    fewest, most = model.config.fewest_experts, model.config.num_experts_per_tok
    hooks = [gate.register_forward_pre_hook(set_threshold) for gate in gates]
    try:
        budget = fewest + fraction * (most - fewest)
        hidden_BSD = model(tokens_BS, budget=budget)
        for depth in range(len(model.mtp)):
            hidden_BSD = model.look_ahead(
                hidden_BSD[:, :-1], tokens_BS[:, depth + 1 :], depth, budget=budget
            )
    finally:
        for hook in hooks:
            hook.remove()
