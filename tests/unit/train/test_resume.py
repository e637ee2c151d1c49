"""A checkpoint holds all that a run needs to go on, and `latest` never names anything else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moestro import files
from moestro.errors import CheckpointError, StorageError
from moestro.model.initialize import initialize
from moestro.model.model import Transformer
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer
from moestro.train.config import TrainConfig
from moestro.train.resume import Progress, resume, save_checkpoint
from moestro.train.step import Stepper
from moestro.weights.find import latest_checkpoint
from tests.builders import random_tokens, tiny_config

STATE = "trainer/state.json"
OPTIMIZER = "trainer/optimizer.safetensors"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn(["some text " * 30], 270)


def build_stepper(**changes: int) -> Stepper:
    model = Transformer(tiny_config(num_nextn_predict_layers=1, **changes))
    initialize(model, 0)
    return Stepper(model, TrainConfig(steps=10, seq_len=8, batch_size=4))


def train(stepper: Stepper, first: int, last: int) -> None:
    for step in range(first, last):
        stepper.run(step, random_tokens(stepper.model.config, 4, 10, seed=step))


def progress(step: int) -> Progress:
    return Progress(step=step, tokens=32 * step, seconds=1.5)


def test_everything_comes_back_to_the_bit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stepper = build_stepper()
    train(stepper, 0, 3)
    path = save_checkpoint(tmp_path, stepper, tokenizer, progress(3), keep=2)
    assert latest_checkpoint(tmp_path) == path
    again = build_stepper()
    assert resume(path, again) == progress(3)
    for its in (stepper, again):
        train(its, 3, 5)
    assert_same(again, stepper)


def assert_same(first: Stepper, second: Stepper) -> None:
    for ours, expected in (
        (first.model.state_dict(), second.model.state_dict()),
        (first.optimizers.state(), second.optimizers.state()),
    ):
        assert ours.keys() == expected.keys()
        assert not [name for name in ours if not torch.equal(ours[name], expected[name])]
    for gate, other in zip(first.gates, second.gates, strict=True):
        assert gate.thresholds_N.numel() > 0
        assert torch.equal(gate.thresholds_N, other.thresholds_N)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_checkpoints_are_kept(
    tmp_path: Path, tokenizer: Tokenizer, keep: int
) -> None:
    stepper = build_stepper()
    for step in range(1, 6):
        train(stepper, step - 1, step)
        save_checkpoint(tmp_path, stepper, tokenizer, progress(step), keep)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in range(6 - keep, 6)]


def test_a_run_that_its_owner_set_back_goes_on_from_there(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    stepper = build_stepper()
    for step in range(1, 5):
        train(stepper, step - 1, step)
        save_checkpoint(tmp_path, stepper, tokenizer, progress(step), keep=3)
    # As the message for a damaged checkpoint advises.
    (tmp_path / "checkpoints/step-00000004" / OPTIMIZER).write_bytes(b"damaged")
    (tmp_path / "latest").write_text("step-00000002\n")
    again = build_stepper()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert resume(found, again) == progress(2)
    for step in (3, 4):
        train(again, step - 1, step)
        path = save_checkpoint(tmp_path, again, tokenizer, progress(step), keep=3)
        assert latest_checkpoint(tmp_path) == path
        assert resume(path, build_stepper()) == progress(step)


def test_saving_the_newest_step_twice_leaves_it_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stepper = build_stepper()
    train(stepper, 0, 1)
    first = save_checkpoint(tmp_path, stepper, tokenizer, progress(1), keep=1)
    written = (first / OPTIMIZER).stat().st_mtime_ns
    assert save_checkpoint(tmp_path, stepper, tokenizer, progress(1), keep=1) == first
    assert (first / OPTIMIZER).stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["step-00000009", "../elsewhere", "", "."])
def test_a_latest_that_names_nothing_is_an_error(
    tmp_path: Path, tokenizer: Tokenizer, name: str
) -> None:
    save_checkpoint(tmp_path, build_stepper(), tokenizer, progress(1), keep=1)
    (tmp_path / "latest").write_text(f"{name}\n")
    with pytest.raises(CheckpointError, match=r"latest: names .* correct the file"):
        latest_checkpoint(tmp_path)


def test_a_run_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(bytes(data))


def overwrite_the_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-5000] + bytes(min(5000, len(data))))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER])
def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, name: str, damage: object
) -> None:
    stepper = build_stepper()
    train(stepper, 0, 1)
    path = save_checkpoint(tmp_path, stepper, tokenizer, progress(1), keep=1)
    assert callable(damage)
    damage(path / name)
    with pytest.raises((CheckpointError, StorageError), match=r"safetensors|trainer"):
        resume(path, build_stepper())


@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER])
def test_weights_and_optimizer_states_with_another_end_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, name: str
) -> None:
    stepper = build_stepper()
    train(stepper, 0, 1)
    path = save_checkpoint(tmp_path, stepper, tokenizer, progress(1), keep=1)
    overwrite_the_end(path / name)
    message = rf"{name}: is not as it was written: write an older step's name into `latest`"
    with pytest.raises(CheckpointError, match=message):
        resume(path, build_stepper())
    # They can be read all the same, and nothing else would tell.
    forget_digests(path)
    assert resume(path, build_stepper()) == progress(1)


def forget_digests(path: Path) -> dict[str, str]:
    state = files.read_json(path / STATE)
    digests: dict[str, str] = state.pop("sha256")
    files.write_json(path / STATE, state)
    return digests


def test_a_checkpoint_of_before_there_were_digests_still_resumes(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    stepper = build_stepper()
    train(stepper, 0, 1)
    path = save_checkpoint(tmp_path, stepper, tokenizer, progress(1), keep=1)
    assert forget_digests(path).keys() == {"model.safetensors", OPTIMIZER, STATE}
    assert resume(path, build_stepper()) == progress(1)


def test_a_checkpoint_with_digests_of_its_weights_alone_still_resumes(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    stepper = build_stepper()
    train(stepper, 0, 1)
    path = save_checkpoint(tmp_path, stepper, tokenizer, progress(1), keep=1)
    state = files.read_json(path / STATE)
    del state["sha256"][OPTIMIZER], state["sha256"][STATE]
    files.write_json(path / STATE, state)
    assert resume(path, build_stepper()) == progress(1)
    overwrite_the_end(path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not as it was written"):
        resume(path, build_stepper())


@pytest.mark.parametrize(
    ("key", "value"), [("tokens", 31), ("seconds", 2.5), ("sha256", {}), ("more", 1)]
)
def test_a_record_of_progress_that_says_something_else_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, key: str, value: object
) -> None:
    path = save_checkpoint(tmp_path, build_stepper(), tokenizer, progress(1), keep=1)
    files.write_json(path / STATE, files.read_json(path / STATE) | {key: value})
    with pytest.raises(CheckpointError, match="is not as it was written"):
        resume(path, build_stepper())


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"step": 1, "tokens": 1, "seconds": 1.0, "sha256": 3}',
        '{"step": 1}',
        "[]",
        "",
        '{"step": "1", "tokens": 1}',
        '{"step": "1", "tokens": 1, "seconds": 1.0}',
        '{"step": 2, "tokens": 1, "seconds": 1.0}',
        '{"step": 1, "tokens": null, "seconds": 1.0}',
    ],
)
def test_a_damaged_record_of_progress_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, text: str
) -> None:
    path = save_checkpoint(tmp_path, build_stepper(), tokenizer, progress(1), keep=1)
    (path / "trainer/state.json").write_text(text)
    with pytest.raises(CheckpointError):
        resume(path, build_stepper())


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 32), ("num_experts_per_tok", 3)])
def test_a_checkpoint_of_another_model_than_the_runs_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, name: str, value: int
) -> None:
    path = save_checkpoint(tmp_path, build_stepper(), tokenizer, progress(1), keep=1)
    other = build_stepper(**{name: value})
    with pytest.raises(CheckpointError, match=f"of another model than the run: {name} is"):
        resume(path, other)


def test_the_optimizer_state_of_another_model_is_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    stepper = build_stepper()
    train(stepper, 0, 1)
    path = save_checkpoint(tmp_path, stepper, tokenizer, progress(1), keep=1)
    save_file({"layers.9.norm.weight|momentum": torch.zeros(2)}, path / OPTIMIZER)
    forget_digests(path)
    with pytest.raises(CheckpointError, match=r"trainer: cannot be resumed .*on one side only"):
        resume(path, build_stepper())
