"""The log of a run continues where its checkpoint was, whatever the killed process left behind."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moestro.train.metrics import MetricsLog, StepMetrics, read_metrics


def metrics(step: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=step,
        tokens=step * 10,
        seconds=0.5,
        loss=loss,
        mtp_loss=None,
        grad_norm=0.1,
        learning_rate=0.01,
        mean_experts=3.0,
        max_violation=0.2,
        tokens_per_s=20.0,
        mfu=0.1,
        eta_s=1.0,
    )


def write(run: Path, first: int, last: int, *, after: int = 0, loss: float = 1.0) -> None:
    log = MetricsLog(run, after)
    for step in range(first, last + 1):
        log.on_step(metrics(step, loss))
    log.close()


def steps(run: Path) -> list[int]:
    return [row["step"] for row in read_metrics(run)]


def test_a_step_is_one_line_with_all_its_numbers(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    (row,) = read_metrics(tmp_path)
    assert row == vars(metrics(1))


def test_a_resumed_log_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1, 7)
    write(tmp_path, 5, 6, after=4, loss=2.0)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("rest", ['{"step": 4, "lo', "{", '{"step": 4', "\n"])
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, rest: str) -> None:
    write(tmp_path, 1, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    assert steps(tmp_path) == [1, 2, 3]
    write(tmp_path, 4, 5, after=3)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("odd", [b"\0\0\0", b"\xff\xfe", b"[1]", b'{"loss": 1}', b'{"step": "2"}'])
def test_a_damaged_line_costs_no_other(tmp_path: Path, odd: bytes) -> None:
    write(tmp_path, 1, 3)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    lines[1] = odd
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert steps(tmp_path) == [1, 3]


def test_only_every_nth_step_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, every=3)
    for step in range(1, 8):
        log.on_step(metrics(step))
    log.close()
    assert steps(tmp_path) == [3, 6]


def test_the_last_step_is_written_whatever_its_number(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, every=5, last=7)
    for step in range(1, 8):
        log.on_step(metrics(step))
    log.close()
    assert steps(tmp_path) == [5, 7]


def test_an_evaluation_is_a_line_of_its_own(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.on_stage("words")
    log.on_step(metrics(1))
    log.on_evaluation(1, "held_out", {"bits_per_byte": 2.5})
    log.on_checkpoint(tmp_path)
    log.close()
    assert read_metrics(tmp_path)[1] == {
        "step": 1,
        "evaluation": "held_out",
        "bits_per_byte": 2.5,
    }


def test_a_run_without_a_log_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("after", [0, 4])
def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path, after: int) -> None:
    write(tmp_path, 1, 7)
    write(tmp_path, after + 1, 6, after=after, loss=2.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert len(events.Scalars("train/loss")) == len(shown)
    assert shown == {step: 1.0 if step <= after else 2.0 for step in range(1, 7)}
