"""The learned thresholds meet any requested mean on tokens that they have not seen.

Shapes: T tokens, K slots, F further slots.
"""

import pytest
import torch
from torch import Tensor

from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.gate import Gate
from moestro.model.trace import Trace
from moestro.train.budget import FRACTIONS, BudgetTable, further_quantiles, table_of
from tests.builders import tiny_config

BUDGETS = [2.0, 2.05, 2.25, 2.6, 3.0, 3.33, 3.75, 3.97, 4.0]


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_learned_table_meets_the_requested_mean_on_fresh_tokens(budget: float) -> None:
    gate = learned_gate()
    fraction_T = torch.full((20_000,), (budget - 2) / 2)
    choice = gate(tokens(20_000, seed=77), fraction_T, None)
    assert mean_experts(choice.is_used_TK) == pytest.approx(budget, rel=0.01)


def test_a_table_follows_the_gate_when_its_scores_change() -> None:
    gate = learned_gate()
    with torch.no_grad():
        gate.weight.mul_(0.5)
    learn(gate, num_steps=120, first_seed=500)
    choice = gate(tokens(20_000, seed=77), torch.full((20_000,), 0.5), None)
    assert mean_experts(choice.is_used_TK) == pytest.approx(3.0, rel=0.01)


def test_a_table_survives_the_configuration_to_the_bit() -> None:
    gate = learned_gate()
    table = table_of([gate])
    assert table.fractions == FRACTIONS
    config = tiny_config(budget=table)
    assert ModelConfig.from_hf(config.to_hf()).budget == table
    copy = Gate(config, moe_layer=0)
    assert torch.equal(copy.thresholds_N, gate.thresholds_N)
    assert torch.equal(copy.fractions_N, gate.fractions_N)


def test_thresholds_fall_as_the_budget_grows() -> None:
    thresholds_N = learned_gate().thresholds_N
    assert bool((thresholds_N[1:] <= thresholds_N[:-1]).all())


def test_without_a_learned_table_there_is_none_to_save() -> None:
    assert table_of([]) == BudgetConfig()
    assert table_of([Gate(tiny_config(), 0)]) == BudgetConfig()


def test_a_threshold_lets_in_its_share_of_the_further_slots() -> None:
    further_TF = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0))
    thresholds_N = further_quantiles(further_TF, FRACTIONS)
    for fraction, threshold in zip(FRACTIONS, thresholds_N.tolist(), strict=True):
        share = float((further_TF > threshold).float().mean())
        assert share == pytest.approx(fraction, abs=1e-3)


@pytest.mark.parametrize("num_slots", [1, 2, 3, 4])
def test_a_sample_of_very_many_tokens_still_holds_every_slot(num_slots: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # Each slot's scores lie below those of the slot before it, as ranked scores do.
    offsets_K = torch.arange(num_slots, 0, -1)
    further_TF = torch.rand(300_000, num_slots, generator=generator) + offsets_K
    (threshold,) = further_quantiles(further_TF, (0.5,))
    assert float((further_TF > threshold).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_micro_batches_share_one_step() -> None:
    whole, parts = build_gate(), build_gate()
    x_TD = tokens(4096, seed=3)
    for gate, size in ((whole, 4096), (parts, 1024)):
        table = BudgetTable([gate], fewest=2)
        for part_TD in x_TD.split(size):
            table.observe(trace_of(gate, part_TD))
        table.apply()
    inner = slice(1, -1)
    torch.testing.assert_close(
        whole.thresholds_N[inner], parts.thresholds_N[inner], atol=0.01, rtol=0
    )


def build_gate() -> Gate:
    gate = Gate(tiny_config(), moe_layer=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        gate.weight.copy_(0.4 * torch.randn(gate.weight.shape, generator=generator))
    return gate


def learned_gate() -> Gate:
    gate = build_gate()
    learn(gate, num_steps=40, first_seed=100)
    return gate


def learn(gate: Gate, num_steps: int, first_seed: int) -> None:
    table = BudgetTable([gate], fewest=2)
    for step in range(num_steps):
        table.observe(trace_of(gate, tokens(2048, seed=first_seed + step)))
        table.apply()


def trace_of(gate: Gate, x_TD: Tensor) -> Trace:
    trace = Trace()
    with torch.no_grad():
        gate(x_TD, None, trace)
    return trace


def tokens(count: int, seed: int) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def mean_experts(is_used_TK: Tensor) -> float:
    return float(is_used_TK.sum(dim=1).float().mean())
