"""A run that is stopped, killed or out of disk at any moment goes on as if nothing had happened."""

import dataclasses
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from moestro import settings
from moestro.errors import CheckpointError, ConfigError
from moestro.train.config import RunConfig
from moestro.train.loop import build_stepper
from moestro.train.metrics import read_metrics
from moestro.train.resume import Progress, resume
from moestro.train.run import load_run, open_run
from moestro.weights.find import latest_checkpoint
from tests.flow.child import STEPS, Plan, finish, micro_config, started

# What differs from run to run although the same was computed.
TIMES = {"seconds", "tokens_per_s", "mfu", "eta_s"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "return", "print", "(x)", "=", "\n"]
    for number in range(30):
        lines = " ".join(draw.choice(words) for _ in range(80))
        (folder / f"{number}.py").write_text(f"# {number}\n{lines}\n")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finish(micro_config(text), folder)
    return folder


def test_a_run_stopped_by_ctrl_c_goes_on_to_the_bit(
    text: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", micro_config(text)
    with started(config, run, Plan(pause_at=5)) as child:
        assert child.hear() == 5
        os.kill(child.process.pid or 0, signal.SIGINT)
        child.go_on()
        kind, message = child.hear()
    assert kind == "Interrupted"
    assert "stopped after step 5: saved" in message
    # Written at once, though none was due.
    assert progress(run).step == 5
    finish(config, run)
    assert_same_run(run, uninterrupted)


def test_a_run_stopped_by_the_system_goes_on_to_the_bit(
    text: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", micro_config(text)
    for step in (3, 9):
        with started(config, run, Plan(pause_at=step)) as child:
            assert child.hear() == step
            os.kill(child.process.pid or 0, signal.SIGTERM)
            child.go_on()
            assert child.hear()[0] == "Interrupted"
    finish(config, run)
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("steps", [[2], [7], [4, 6, 11]])
def test_a_killed_run_goes_on_to_the_bit(
    text: Path, uninterrupted: Path, tmp_path: Path, steps: list[int]
) -> None:
    run, config = tmp_path / "run", micro_config(text)
    for step in steps:
        with started(config, run, Plan(pause_at=step)) as child:
            assert child.hear() == step
            child.kill()
        assert [row["step"] for row in read_metrics(run)] == list(range(1, step + 1))
    finish(config, run)
    assert_same_run(run, uninterrupted)


def test_a_finished_run_is_left_as_it_is(uninterrupted: Path, text: Path) -> None:
    before = final_bytes(uninterrupted)
    finish(micro_config(text), uninterrupted)
    assert final_bytes(uninterrupted) == before
    assert progress(uninterrupted).step == STEPS


@pytest.mark.parametrize(
    ("num_kills", "num_steps"), [(5, STEPS), pytest.param(40, 60, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_random_moments_always_has_a_checkpoint_that_loads(
    text: Path, uninterrupted: Path, tmp_path: Path, num_kills: int, num_steps: int
) -> None:
    run, config = tmp_path / "run", micro_config(text, every_steps=1, steps=num_steps)
    draw, steps = random.Random(1), [0]
    while steps[-1] < num_steps - 1 and len(steps) <= num_kills:
        with started(config, run, Plan(pause_at=steps[-1] + 1)) as child:
            assert child.hear() == steps[-1] + 1
            child.go_on()
            time.sleep(draw.uniform(0, 0.1))
            child.kill()
        steps.append(progress(run).step if latest_checkpoint(run) else 0)
    assert len(steps) > 3, "the run was over before it could be killed"
    assert steps == sorted(steps)
    finish(config, run)
    expected = uninterrupted
    if num_steps != STEPS:
        expected = tmp_path / "expected"
        finish(micro_config(text, steps=num_steps), expected)
    assert_same_run(run, expected)


def test_a_checkpoint_that_was_being_written_at_the_kill_is_never_taken_for_one(
    text: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", micro_config(text, every_steps=1)
    for first in range(1, STEPS):
        with started(config, run, Plan(pause_at=first)) as child:
            assert child.hear() == first
            child.go_on()
            drafts = wait_for_draft(run)
            child.kill()
        if drafts and all(draft.exists() for draft in drafts):
            break
    assert list((run / "checkpoints").glob(".*.partial")), "no kill fell into a checkpoint"
    assert latest_checkpoint(run) is None or progress(run).step >= first - 1
    finish(config, run)
    assert_same_run(run, uninterrupted)
    assert not list((run / "checkpoints").glob(".*.partial"))


def test_a_disk_that_fills_during_a_checkpoint_leaves_the_last_good_one(
    text: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", micro_config(text)
    # The largest file, and the first that is written.
    largest = uninterrupted / f"checkpoints/step-{STEPS:08d}/trainer/optimizer.safetensors"
    size = largest.stat().st_size
    with started(config, run, Plan(pause_at=6, max_file_bytes=size - 1)) as child:
        assert child.hear() == 6
        before = final_bytes(run)
        child.go_on()
        kind, message = child.hear()
    assert kind == "StorageError"
    assert "File too large: free space or grant access, then repeat" in message
    assert largest.name in message
    assert progress(run).step == 4
    assert final_bytes(run) == before
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    finish(config, run)
    assert_same_run(run, uninterrupted)


def test_a_disk_that_fills_while_metrics_are_written_is_named(text: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", micro_config(text)
    with started(config, run, Plan(pause_at=6, max_file_bytes=100)) as child:
        assert child.hear() == 6
        child.go_on()
        kind, message = child.hear()
    assert kind == "StorageError"
    assert "metrics.jsonl: File too large" in message
    assert progress(run).step == 4


@pytest.mark.parametrize(
    ("key", "assignments"),
    [
        ("model.hidden_size", ["model.hidden_size=64", "train.seed=1"]),
        ("train.optimizer.learning_rate", ["train.optimizer.learning_rate=0.5"]),
        ("train.seed is 0 there and 1 here", ["train.seed=1", "train.steps=99"]),
        ("data.fim_rate", ["data.fim_rate=0.0"]),
    ],
)
def test_another_configuration_is_refused_by_its_first_different_setting(
    text: Path, uninterrupted: Path, key: str, assignments: list[str]
) -> None:
    before = final_bytes(uninterrupted)
    with pytest.raises(ConfigError, match=f"holds a run of another configuration: {key}"):
        open_run(changed(micro_config(text), assignments), uninterrupted)
    assert final_bytes(uninterrupted) == before


def test_a_run_that_never_took_a_step_makes_way_for_another_configuration(
    text: Path, tmp_path: Path
) -> None:
    for assignments in (["train.seed=1"], ["train.seed=2"]):
        config = changed(micro_config(text), assignments)
        assert open_run(config, tmp_path / "run").config.train.seed == config.train.seed
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="but no run: choose"):
        open_run(changed(micro_config(text), ["train.seed=3"]), tmp_path / "run")
    assert open_run(config, tmp_path / "run").config.train.seed == 2
    # A process may be under way that has not saved anything yet.
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="is 2 there and 3 here"):
        open_run(changed(micro_config(text), ["train.seed=3"]), tmp_path / "run")


def test_settings_that_change_no_weight_may_differ(text: Path, uninterrupted: Path) -> None:
    config = changed(micro_config(text), ["train.checkpoint.keep=5", "train.log_every=3"])
    opened = open_run(config, uninterrupted).config.train
    assert (opened.checkpoint.keep, opened.log_every) == (5, 3)
    automatic = changed(micro_config(text), ["train.dtype=auto", "train.device=auto"])
    assert open_run(automatic, uninterrupted).config.train.dtype == "float32"


def test_evaluating_on_the_way_changes_no_weight(
    text: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finish(changed(micro_config(text), ["train.evaluate_every=5"]), run)
    found = [row for row in read_metrics(run) if "evaluation" in row]
    assert [row["step"] for row in found] == list(range(5, STEPS + 1, 5))
    assert all(row["bits_per_byte"] > 0 for row in found)
    assert final_bytes(run) == final_bytes(uninterrupted)


def test_a_folder_of_something_else_is_left_alone(text: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds thesis\.txt but no run"):
        open_run(micro_config(text), tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        open_run(micro_config(text), tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def changed(config: RunConfig, assignments: list[str]) -> RunConfig:
    tables = settings.override(settings.to_tables(config), assignments)
    return settings.build(RunConfig, tables)


def progress(run: Path) -> Progress:
    """Load the newest checkpoint whole, as a run that goes on does."""
    path = latest_checkpoint(run)
    if path is None:
        raise CheckpointError(f"{run}: has no checkpoint")
    return resume(path, build_stepper(load_run(run).config))


def wait_for_draft(run: Path) -> list[Path]:
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        if drafts := list((run / "checkpoints").glob(".*.partial")):
            return drafts
    return []


def final_bytes(run: Path) -> dict[str, bytes]:
    """Read the newest checkpoint, all but the clock's part of it."""
    path = latest_checkpoint(run)
    assert path is not None
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name != "trainer/state.json"}


def curve(run: Path) -> list[dict[str, Any]]:
    rows = read_metrics(run)
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same_run(run: Path, expected: Path) -> None:
    assert curve(run) == curve(expected)
    last = progress(expected).step
    assert [row["step"] for row in curve(run)] == list(range(1, last + 1))
    ours, theirs = final_bytes(run), final_bytes(expected)
    assert {"model.safetensors", "trainer/optimizer.safetensors", "config.json"} <= ours.keys()
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] != theirs[name]]
    first, second = progress(run), progress(expected)
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(second, seconds=0.0)
