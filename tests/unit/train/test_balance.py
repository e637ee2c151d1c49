"""Each balance method does what its paper says, and makes a skewed gate's loads more equal.

Shapes: T tokens, D width, E experts, K slots.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.gate import Gate
from moestro.model.trace import GateRecord, Trace
from moestro.train.balance import (
    Balancer,
    global_batch_loss,
    load_violation,
    quantile_bias,
    sequence_loss,
    share_lacking,
    z_loss,
)
from moestro.train.config import BalanceConfig
from tests.builders import tiny_config

NUM_TOKENS = 2048
NUM_SEQUENCES = 8


@pytest.mark.parametrize(
    "config",
    [
        BalanceConfig(method="proportional", rate=0.5, sequence_weight=0.0),
        BalanceConfig(method="sign", rate=0.01, sequence_weight=0.0),
        BalanceConfig(method="quantile", rate=0.3, sequence_weight=0.0),
        BalanceConfig(method="global_aux", weight=1.0),
        BalanceConfig(method="sequence_aux", weight=1.0),
    ],
    ids=lambda config: config.method,
)
def test_every_method_balances_a_skewed_gate(config: BalanceConfig) -> None:
    gate = skewed_gate()
    before = violation(gate)
    train(gate, config, num_steps=60)
    assert before > 0.5
    assert violation(gate) < before / 3


def test_no_method_leaves_the_gate_alone() -> None:
    gate = skewed_gate()
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    train(gate, BalanceConfig(method="none", router_z_weight=0.0), num_steps=3)
    assert all(torch.equal(value, before[name]) for name, value in gate.state_dict().items())


def test_proportional_balance_equalizes_loads_at_all_experts_within_a_few_steps() -> None:
    gate = skewed_gate()
    train(gate, BalanceConfig(method="proportional", rate=0.5, sequence_weight=0.0), num_steps=15)
    assert violation(gate) < 0.05


def test_batches_of_unlike_documents_are_balanced_in_the_mean() -> None:
    gate = skewed_gate()
    config = BalanceConfig(method="proportional", rate=0.05, sequence_weight=0.0)
    balancer = Balancer([gate], config)
    for step in range(400):
        balancer.observe(trace_of(gate, document(step)))
        balancer.apply()
    loads_E = sum(trace_of(gate, document(step)).gates[0].counts_E for step in range(800, 864))
    assert isinstance(loads_E, Tensor)
    assert load_violation(loads_E) < 0.1


@pytest.mark.parametrize("budget", [None, 0.3])
def test_quantile_balance_equalizes_loads_within_a_few_steps(budget: float | None) -> None:
    row = (-0.05, -0.1, -0.15, -0.25, -0.6)
    table = BudgetConfig(fractions=(0.0, 0.25, 0.5, 0.75, 1.0), thresholds=(row,))
    gate = skewed_gate(tiny_config(budget=table))
    config = BalanceConfig(method="quantile", rate=0.5, sequence_weight=0.0)
    train(gate, config, num_steps=15, budget=budget)
    assert violation(gate, budget) < 0.12


@pytest.mark.parametrize("method", ["proportional", "quantile"])
def test_biases_stay_finite_where_the_groups_leave_no_expert_to_refuse(method: str) -> None:
    groups = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
    gate = skewed_gate(tiny_config(**groups))
    train(gate, BalanceConfig(method=method, rate=0.5), num_steps=3)  # type: ignore[arg-type]
    assert gate.e_score_correction_bias is not None
    assert bool(gate.e_score_correction_bias.isfinite().all())


def test_biases_stay_finite_where_every_expert_is_chosen() -> None:
    record = look(skewed_gate(tiny_config(num_experts_per_tok=8)))
    assert bool(quantile_bias(record).isfinite().all())
    assert not share_lacking(record).any()


def test_a_share_that_lacks_is_that_of_a_hand_calculation() -> None:
    # Loads 1, 1, 1 at the budget and 1, 2, 1 at two experts each: of two tokens, 7/6 are equal.
    assert share_lacking(HAND).tolist() == pytest.approx([1 / 12, -1 / 6, 1 / 12])


def test_proportional_balance_moves_each_bias_by_the_rate_times_what_it_lacks() -> None:
    gate = skewed_gate()
    lacking_E = share_lacking(look(gate))
    train(gate, BalanceConfig(method="proportional", rate=0.1, sequence_weight=0.0), num_steps=1)
    assert gate.e_score_correction_bias is not None
    torch.testing.assert_close(gate.e_score_correction_bias, 0.1 * lacking_E)


def test_sign_balance_moves_each_bias_by_the_rate_towards_equal_load() -> None:
    gate = skewed_gate()
    counts_E = look(gate).counts_E
    train(gate, BalanceConfig(method="sign", rate=0.001, router_z_weight=0.0), num_steps=1)
    moved_E = 0.001 * (counts_E.mean() - counts_E).sign()
    assert gate.e_score_correction_bias is not None
    torch.testing.assert_close(gate.e_score_correction_bias, moved_E - moved_E.mean())


@pytest.mark.parametrize("method", ["proportional", "sign", "quantile"])
def test_micro_batches_give_the_biases_of_the_whole_batch(method: str) -> None:
    config = BalanceConfig(method=method, rate=0.1)  # type: ignore[arg-type]
    whole, split = skewed_gate(), skewed_gate()
    for gate, size in ((whole, NUM_TOKENS), (split, NUM_TOKENS // 4)):
        balancer = Balancer([gate], config)
        for part in tokens().split(size):
            balancer.observe(trace_of(gate, part))
        balancer.apply()
    assert whole.e_score_correction_bias is not None
    assert split.e_score_correction_bias is not None
    # Four parts' quantiles have a mean near the whole's; counts simply add up.
    tolerance = 1e-7 if method == "sign" else 0.005
    gap_E = whole.e_score_correction_bias - split.e_score_correction_bias
    assert float(gap_E.abs().max()) <= tolerance


def test_a_step_reports_its_violation_and_forgets_its_counts() -> None:
    gate = skewed_gate()
    balancer = Balancer([gate], BalanceConfig(method="none"))
    balancer.observe(trace_of(gate, tokens()))
    assert balancer.apply() == pytest.approx([load_violation(look(gate).counts_E)])
    balancer.observe(trace_of(gate, tokens()[:1]))
    # One token's four experts of eight: twice the mean.
    assert balancer.apply() == pytest.approx([1.0])


def test_violation_is_the_busiest_experts_load_over_the_mean_minus_one() -> None:
    assert load_violation(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(0.0)
    assert load_violation(torch.tensor([0.0, 3.0, 0.0])) == pytest.approx(2.0)


def test_version_2_gates_have_no_bias_to_correct() -> None:
    config = tiny_config(model_type="deepseek_v2", topk_method="greedy")
    gate = skewed_gate(config)
    balancer = Balancer([gate], BalanceConfig(method="sign"))
    balancer.observe(trace_of(gate, tokens()))
    assert balancer.apply()[0] > 0


def test_a_dense_model_needs_no_balance() -> None:
    assert Balancer([], BalanceConfig()).apply() == []


# Two tokens, three experts, two slots; the second token leaves one slot unused.
HAND = GateRecord(
    logits_TE=torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]),
    scores_TE=torch.tensor([[0.1, 0.4, 0.5], [0.6, 0.2, 0.2]]),
    selection_TE=torch.tensor([[0.1, 0.4, 0.5], [0.6, 0.2, 0.2]]),
    ranked_TK=torch.tensor([[0.5, 0.4], [0.6, 0.2]]),
    experts_TK=torch.tensor([[2, 1], [0, 1]]),
    weights_TK=torch.tensor([[0.5, 0.4], [0.6, 0.0]]),
    is_used_TK=torch.tensor([[True, True], [True, False]]),
)


def test_counts_leave_out_unused_slots() -> None:
    assert HAND.counts_E.tolist() == [1.0, 1.0, 1.0]


def test_the_global_loss_is_that_of_a_hand_calculation() -> None:
    # f = counts / 3, P = mean scores: 3 * (f . P).
    counts_E = torch.tensor([1.0, 2.0, 0.0])
    assert float(global_batch_loss(HAND, counts_E)) == pytest.approx(
        3 * (0.35 * 1 / 3 + 0.3 * 2 / 3)
    )
    equal = global_batch_loss(HAND, torch.ones(3))
    assert float(equal) == pytest.approx(1.0)


def test_the_sequence_loss_is_that_of_a_hand_calculation() -> None:
    # Sequence 1: loads 0, 1/2, 1/2; sequence 2: loads 1, 0, 0.
    first, second = 3 * (0.5 * 0.4 + 0.5 * 0.5), 3 * 0.6
    assert float(sequence_loss(HAND, 2)) == pytest.approx((first + second) / 2)
    assert float(sequence_loss(HAND, 1)) == pytest.approx(1.0)


def test_the_z_loss_is_that_of_a_hand_calculation() -> None:
    first = torch.tensor([0.0, 1.0, 2.0]).exp().sum().log()
    second = torch.tensor([1.0, 0.0, 0.0]).exp().sum().log()
    assert float(z_loss(HAND)) == pytest.approx(float((first**2 + second**2) / 2))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            BalanceConfig(method="none", router_z_weight=0.5),
            lambda: 0.5 * float(z_loss(HAND)),
        ),
        (
            BalanceConfig(method="global_aux", weight=2.0, router_z_weight=0.0),
            lambda: 2 * float(global_batch_loss(HAND, HAND.counts_E)),
        ),
        (
            BalanceConfig(method="sequence_aux", weight=2.0, router_z_weight=0.5),
            lambda: 2 * float(sequence_loss(HAND, 2)) + 0.5 * float(z_loss(HAND)),
        ),
        (
            BalanceConfig(method="quantile", router_z_weight=0.0, sequence_weight=3.0),
            lambda: 3 * float(sequence_loss(HAND, 2)),
        ),
        (BalanceConfig(method="sign", router_z_weight=0.0, sequence_weight=0.0), lambda: 0.0),
        (BalanceConfig(method="none", router_z_weight=0.0, sequence_weight=3.0), lambda: 0.0),
    ],
)
def test_the_configured_losses_are_added_with_their_weights(
    config: BalanceConfig, expected: Callable[[], float]
) -> None:
    balancer = Balancer([Gate(tiny_config(n_routed_experts=3, num_experts_per_tok=2), 0)], config)
    trace = Trace([HAND])
    balancer.observe(trace)
    assert float(balancer.loss(trace, num_sequences=2)) == pytest.approx(expected())


def skewed_gate(config: ModelConfig | None = None) -> Gate:
    """Build a gate whose first experts please every token."""
    gate = Gate(config or tiny_config(), moe_layer=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        gate.weight.copy_(0.3 * torch.randn(gate.weight.shape, generator=generator))
        # The last input is 1 for every token: its weights are what each expert likes in all.
        gate.weight[:, -1] = torch.linspace(1, -1, gate.weight.shape[0])
    return gate


def tokens(seed: int = 0) -> Tensor:
    x_TD = torch.randn(NUM_TOKENS, 16, generator=torch.Generator().manual_seed(seed))
    x_TD[:, -1] = 1
    return x_TD


def document(step: int) -> Tensor:
    """Return a step's tokens; those of every eighth step please the first expert."""
    x_TD = tokens(seed=step)[:256]
    x_TD[:, 0] = 3.0 if step % 8 == 0 else -3.0
    return x_TD


def trace_of(gate: Gate, x_TD: Tensor, budget: float | None = None) -> Trace:
    trace = Trace()
    gate(x_TD, None if budget is None else torch.full((len(x_TD),), budget), trace)
    return trace


def look(gate: Gate, budget: float | None = None) -> GateRecord:
    return trace_of(gate, tokens(), budget).gates[0]


def violation(gate: Gate, budget: float | None = None) -> float:
    """Measure on tokens that no step has seen."""
    return load_violation(trace_of(gate, tokens(seed=99), budget).gates[0].counts_E)


def train(gate: Gate, config: BalanceConfig, num_steps: int, budget: float | None = None) -> None:
    balancer = Balancer([gate], config)
    for step in range(num_steps):
        trace = trace_of(gate, tokens(seed=step), budget)
        balancer.observe(trace)
        loss = balancer.loss(trace, NUM_SEQUENCES)
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, gate.weight)
            with torch.no_grad():
                gate.weight -= 2 * gradient
        balancer.apply()
