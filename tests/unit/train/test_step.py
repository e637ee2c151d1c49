"""A step follows from seed, number and batch; its micro-batches change nothing but memory."""

import pytest
import torch
from torch import Tensor

from moestro.model.initialize import initialize
from moestro.model.model import Transformer
from moestro.model.trace import Trace
from moestro.train.balance import load_violation
from moestro.train.config import BalanceConfig, BalanceMethod, OptimizerConfig, TrainConfig
from moestro.train.step import Stepper, StepResult
from tests.builders import random_tokens, tiny_config

SEQ_LEN = 16


def test_training_lowers_the_loss() -> None:
    stepper = build_stepper(steps=30)
    losses = [stepper.run(step, text(step)).loss for step in range(30)]
    assert losses[-1] < losses[0] - 0.5


def test_equal_seeds_give_equal_bits() -> None:
    first, second = build_stepper(), build_stepper()
    for step in range(4):
        assert first.run(step, text(step)) == second.run(step, text(step))
    states = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("method", ["sign", "none"])
def test_micro_batches_give_the_update_of_the_whole_batch(method: str) -> None:
    # Chosen so that nothing depends on how a batch is divided: no quantiles, no loss of loads.
    balance = BalanceConfig(method=method, rate=0.01, router_z_weight=0.0)  # type: ignore[arg-type]
    optimizer = OptimizerConfig(learning_rate=0.01, adamw_learning_rate=0.001)
    whole = build_stepper(balance=balance, optimizer=optimizer)
    split = build_stepper(balance=balance, optimizer=optimizer, micro_batch_size=2)
    first, second = whole.run(0, text(0)), split.run(0, text(0))
    assert second.loss == pytest.approx(first.loss, abs=1e-5)
    assert second.mtp_loss == pytest.approx(first.mtp_loss, abs=1e-5)
    assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-4)
    assert second.violations == pytest.approx(first.violations)
    assert second.mean_experts == pytest.approx(first.mean_experts)


def test_budgets_cover_the_whole_range_in_every_batch_once_thresholds_are_known() -> None:
    slow = OptimizerConfig(learning_rate=1e-7, adamw_learning_rate=1e-7)
    balance = BalanceConfig(method="none")
    stepper = build_stepper(batch_size=64, seq_len=8, optimizer=slow, balance=balance)
    means = [stepper.run(step, random_windows(64, 8, step)).mean_experts for step in range(40)]
    # The first step knows no threshold yet and takes all.
    assert means[0] == 4.0
    late = [mean for mean in means[20:] if mean is not None]
    assert sum(late) / len(late) == pytest.approx(3.0, abs=0.05)


def test_settling_sets_the_thresholds_by_the_weights_as_they_are_at_the_end() -> None:
    stepper = build_stepper(steps=16, batch_size=64, seq_len=16)
    stepper.run(0, random_windows(64, 16, 0))
    with torch.no_grad():
        for gate in stepper.gates:
            gate.weight.mul_(3)
    before = [gate.thresholds_N for gate in stepper.gates]
    stepper.settle(lambda step: random_windows(64, 16, step))
    after = [gate.thresholds_N for gate in stepper.gates]
    # Distances grow with the weights, so the lowest thresholds have to fall.
    for old_N, new_N in zip(before, after, strict=True):
        assert float(new_N[-1]) < float(old_N[-1])
    trace = Trace()
    with torch.no_grad():
        stepper.model(random_windows(256, 14, 999), budget=3.0, trace=trace)
    means = [float(record.is_used_TK.sum(dim=1).float().mean()) for record in trace.gates]
    assert sum(means) / len(means) == pytest.approx(3.0, abs=0.05)


def test_settling_reads_the_batches_behind_the_last_step_and_at_most_an_eighth_of_the_run() -> None:
    asked: list[int] = []

    def windows_of(step: int) -> Tensor:
        asked.append(step)
        return random_windows(8, 16, step)

    stepper = build_stepper(steps=20, seq_len=16)
    stepper.settle(windows_of)
    # Once for the biases and once for the thresholds.
    assert asked == [20, 21, 22, 20, 21, 22]
    asked.clear()
    build_stepper(steps=20, is_budget_drawn=False, seq_len=16).settle(windows_of)
    assert asked == [20, 21, 22]


@pytest.mark.parametrize("method", ["none", "global_aux"])
def test_a_method_without_biases_has_none_settled(method: BalanceMethod) -> None:
    stepper = build_stepper(is_budget_drawn=False, balance=BalanceConfig(method=method))
    stepper.settle(lambda step: pytest.fail(f"read the batch of step {step}"))


def test_settling_changes_biases_and_thresholds_only() -> None:
    stepper = build_stepper(seq_len=16, batch_size=512)
    stepper.run(0, random_windows(512, 16, 0))
    before = {name: value.clone() for name, value in stepper.model.state_dict().items()}
    stepper.settle(lambda step: random_windows(512, 16, step))
    changed = {
        name
        for name, value in stepper.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {name for name in before if name.endswith("e_score_correction_bias")}


def test_settling_evens_the_loads_of_text_that_it_has_not_read() -> None:
    stepper = build_stepper(steps=160, seq_len=16, batch_size=512)
    for gate in stepper.gates:
        assert gate.e_score_correction_bias is not None
        gate.e_score_correction_bias += 0.05 * torch.randn(
            len(gate.weight), generator=torch.Generator().manual_seed(1)
        )
    before = violations(stepper)
    stepper.settle(lambda step: random_windows(512, 16, step))
    after = violations(stepper)
    assert all(new < 0.25 * old for old, new in zip(before, after, strict=True))


@torch.no_grad()
def violations(stepper: Stepper) -> list[float]:
    trace = Trace()
    stepper.model(random_windows(512, 14, 999), trace=trace)
    return [load_violation(record.counts_E) for record in trace.gates]


def test_without_drawn_budgets_every_token_takes_all_experts_and_no_table_is_learned() -> None:
    stepper = build_stepper(is_budget_drawn=False)
    assert stepper.run(0, text(0)).mean_experts == 4.0
    assert stepper.gates[0].thresholds_N.numel() == 0


def test_a_model_with_one_number_of_experts_draws_no_budget() -> None:
    model = Transformer(tiny_config(min_experts_per_tok=None))
    initialize(model, 0)
    stepper = Stepper(model, TrainConfig(steps=2, seq_len=SEQ_LEN, batch_size=8))
    assert stepper.run(0, text(0)[:, :17]).mean_experts == 4.0


def test_a_dense_model_trains_and_reports_no_experts() -> None:
    model = Transformer(tiny_config(first_k_dense_replace=2))
    initialize(model, 0)
    stepper = Stepper(model, TrainConfig(steps=2, seq_len=SEQ_LEN, batch_size=8))
    result = stepper.run(0, text(0)[:, :17])
    assert (result.mean_experts, result.violations, result.mtp_loss) == (None, [], None)


def test_bfloat16_arithmetic_leaves_weights_and_state_in_float32() -> None:
    stepper = build_stepper()
    stepper.model.compute_dtype = torch.bfloat16
    result: StepResult = stepper.run(0, text(0))
    assert result.loss == pytest.approx(build_stepper().run(0, text(0)).loss, abs=0.02)
    tensors = [*stepper.model.state_dict().values(), *stepper.optimizers.state().values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def build_stepper(
    *,
    steps: int = 8,
    seq_len: int = SEQ_LEN,
    batch_size: int = 8,
    micro_batch_size: int | None = None,
    is_budget_drawn: bool = True,
    balance: BalanceConfig | None = None,
    optimizer: OptimizerConfig | None = None,
) -> Stepper:
    model = Transformer(tiny_config(num_nextn_predict_layers=1))
    initialize(model, 0)
    config = TrainConfig(
        steps=steps,
        seq_len=seq_len,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        is_budget_drawn=is_budget_drawn,
        balance=balance or BalanceConfig(),
        optimizer=optimizer or OptimizerConfig(learning_rate=0.02, adamw_learning_rate=0.02),
    )
    return Stepper(model, config)


def text(step: int) -> Tensor:
    """Return windows in which each token is the one before it plus one."""
    starts = random_tokens(tiny_config(), 8, 1, seed=step)
    return (starts + torch.arange(SEQ_LEN + 2)) % 40


def random_windows(num_windows: int, seq_len: int, step: int) -> Tensor:
    return random_tokens(tiny_config(), num_windows, seq_len + 2, seed=step)
