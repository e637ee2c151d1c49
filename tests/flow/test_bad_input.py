"""Every mistake gets status 2 and one line that names the thing, and leaves what was there intact.

Next: test_resume.py, for a disk that fills and for Ctrl-C at any step.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from moestro.train.run import alone_in
from tests.flow.program import fork, run

TRAIN = ("train", "micro.toml", "--out", "new")


@pytest.fixture(autouse=True)
def intact(workplace: Path, model: Path) -> Iterator[None]:
    """Prove that nothing in the workplace was changed, added or removed."""
    before = digest(workplace)
    yield
    assert digest(workplace) == before


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.step=5", ["train.step", "hint: steps"]),
        ("model.n_shared_experts=-1", ["n_shared_experts", "-1", "0 or more"]),
        ("model.num_nextn_predict_layers=-1", ["num_nextn_predict_layers", "-1", "0 or more"]),
        ("model.rms_norm_eps=-1", ["rms_norm_eps", "-1", "above 0"]),
        ("model.routed_scaling_factor=inf", ["routed_scaling_factor", "inf", "finite"]),
        ("model.initializer_range=-1", ["initializer_range", "-1", "above 0"]),
        ("train.optimizer.learning_rate=inf", ["learning_rate", "inf", "finite"]),
        ("train.optimizer.weight_decay=-3", ["weight_decay", "-3", "0 or more"]),
        ("model.kv_lora_rank=100000000000", ["G parameters", "GB", "smaller preset"]),
        ("train.optimizer.leraning_rate=1", ["leraning_rate", "hint: learning_rate"]),
        ("train.leraning_rate=1", ["train.leraning_rate", "hint: optimizer.learning_rate"]),
        ("steps=1", ["steps", "hint: train.steps"]),
        ("modle.hidden_size=8", ["modle", "hint: model"]),
        ("train.steps=many", ["train.steps", "'many'", "int"]),
        ("train.steps=true", ["train.steps", "True", "int"]),
        ("train.optimizer.learning_rate=nan", ["train.optimizer.learning_rate", "nan"]),
        ("train.balance.method=qantile", ["train.balance.method", "'qantile'", "quantile"]),
        ("train=3", ["train", "3", "table"]),
        ("train.steps=0", ["train.steps", "0"]),
        ("train.device=cudda", ["train.device", "'cudda'", "cuda"]),
        ("preset=dmo", ["preset", "'dmo'", "demo"]),
        ("model.num_experts_per_tok=20", ["num_experts_per_tok", "20", "8 experts"]),
        ("model.min_experts_per_tok=5", ["min_experts_per_tok", "5", "4"]),
        ("model.qk_rope_head_dim=5", ["qk_rope_head_dim", "5", "even"]),
        ("model.n_group=3", ["n_group", "3", "8 experts"]),
        ("model.first_k_dense_replace=9", ["first_k_dense_replace", "9", "2 layers"]),
        ("train.seq_len=65", ["train.seq_len", "65", "64"]),
        ("tokenizer.vocab_size=400", ["tokenizer.vocab_size", "400", "300"]),
        ("tokenizer.path=nope", ["nope", "no such file"]),
        ("data.paths=nope", ["nope", "no such file or folder"]),
        ("train.steps", ["train.steps", "NAME=VALUE"]),
        ("=3", ["=3", "NAME=VALUE"]),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(
    workplace: Path, assignment: str, words: list[str]
) -> None:
    assert_names(fork(*TRAIN, "--set", assignment, cwd=workplace).complaint(), words)


def test_a_mistake_of_a_whole_process_is_one_line_and_nothing_else(workplace: Path) -> None:
    ended = run(*TRAIN, "--set", "train.step=5", cwd=workplace)
    assert ended.complaint() == "train.step: unknown setting. hint: steps"
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "'train'"]),
        (["generate", "run"], ["prompt", "moestro generate --help"]),
        (["generate", "run", "a", "--expert", "3"], ["--expert", "--experts"]),
        (["generate", "run", "a", "--experts", "many"], ["--experts", "'many'"]),
        (["convert", "run", "new", "--quantize", "int3"], ["--quantize", "'int3'", "fp8"]),
        (["inspect", "run", "other"], ["other"]),
        (["train", "micro.toml", "--set"], ["--set"]),
    ],
)
def test_a_command_line_that_cannot_be_is_one_line(
    workplace: Path, arguments: list[str], words: list[str]
) -> None:
    ended = fork(*arguments, cwd=workplace)
    assert_names(ended.complaint(), words)
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("kind", ["empty", "binary", "blank"])
def test_a_folder_without_readable_text_is_named(
    workplace: Path, tmp_path: Path, kind: str
) -> None:
    if kind != "empty":
        data = bytes(range(256)) if kind == "binary" else b" \n" * 50
        (tmp_path / "file.txt").write_bytes(data)
    commands = [[*TRAIN, "--set", f"data.paths={tmp_path}"], ["score", "run", tmp_path]]
    for command in commands:
        assert_names(fork(*command, cwd=workplace).complaint(), [str(tmp_path), "no readable text"])


def test_a_given_tokenizer_that_is_larger_than_the_model_is_refused(
    workplace: Path, checkpoint: Path
) -> None:
    assignments = ["--set", f"tokenizer.path={checkpoint}", "--set", "model.vocab_size=270"]
    complaint = fork(*TRAIN, *assignments, cwd=workplace).complaint()
    assert_names(complaint, ["model.vocab_size is 270", "ids"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "run", "a", "--experts", "1.5"], ["experts", "1.5", "2 to 4"]),
        (["generate", "run", "a", "--experts", "nan"], ["experts", "nan", "2 to 4"]),
        (["score", "run", "text/1.py", "--experts", "4.1"], ["experts", "4.1", "2 to 4"]),
        (["xray", "run", "a", "--experts", "-1"], ["experts", "-1", "2 to 4"]),
        (["generate", "run", "a", "--max-tokens", "-1"], ["max_tokens", "-1"]),
        (["generate", "run", "a", "--temperature", "nan"], ["temperature", "nan"]),
        (["generate", "run", "a", "--temperature", "-1"], ["temperature", "-1"]),
        (["generate", "run", "a b = " * 60], ["the prompt", "limit 64"]),
        (["xray", "run", "a b = " * 60], ["the text", "limit 63"]),
        (["xray", "run", ""], ["the text", "empty"]),
        (["score", "run", "nope.txt"], ["nope.txt", "no such file"]),
        (["demo", "--minutes", "-1"], ["--minutes", "-1"]),
        (["demo", "--minutes", "inf"], ["--minutes", "inf"]),
        (["demo", "--out", "run", "--set", "train.step=5"], ["train.step", "hint: steps"]),
        (["convert", "run", "new", "--text", "text"], ["--text", "text", "--quantize"]),
        (["convert", "run", "new", "--min-experts", "2"], ["--min-experts", "2", "--calibrate"]),
    ],
)
def test_a_request_that_no_model_can_meet_is_refused(
    workplace: Path, arguments: list[str], words: list[str]
) -> None:
    assert_names(fork(*arguments, cwd=workplace).complaint(), words)


@pytest.mark.parametrize("fewest", ["0", "4"])
def test_a_budget_table_needs_fewer_experts_than_the_most(workplace: Path, fewest: str) -> None:
    arguments = ["convert", "run", "new", "--calibrate", "text", "--min-experts", fewest]
    assert_names(fork(*arguments, cwd=workplace).complaint(), ["min_experts", fewest])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nope", ["nope", "no such folder"]),
        ("text", ["text", "no config.json"]),
        ("text/1.py", ["text/1.py", "is a file"]),
    ],
)
def test_a_place_that_is_no_model_is_named_by_every_command(
    workplace: Path, place: str, words: list[str]
) -> None:
    commands: list[list[str]] = [
        ["generate", place, "a"],
        ["score", place, "text/1.py"],
        ["inspect", place],
        ["xray", place, "a"],
        ["convert", place, "new"],
    ]
    for command in commands:
        assert_names(fork(*command, cwd=workplace).complaint(), words)


@pytest.mark.parametrize("size", [0, 7, 500, -1])
def test_a_checkpoint_that_is_cut_short_is_named(workplace: Path, copied: Path, size: int) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert_refused(workplace, copied, ["model.safetensors", "damaged or cut short"])


@pytest.mark.parametrize("place", [0, 7, 8, 40])
def test_a_checkpoint_with_a_flipped_byte_in_its_header_is_named(
    workplace: Path, copied: Path, place: int
) -> None:
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[place] ^= 0xFF
    weights.write_bytes(bytes(data))
    assert_refused(workplace, copied, ["model.safetensors", "damaged"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, ["config.json", "model_type", "'llama'", "deepseek_v3"]),
        ({"model_type": "deepseek_v2"}, ["config.json"]),
        ({"hidden_size": 64}, ["shape", "[300, 32]", "[300, 64]"]),
        ({"num_hidden_layers": 3}, ["config.json", "budget", "2 rows", "3 MoE layers"]),
        ({"n_routed_experts": 4}, ["model.layers.1", "config.json"]),
        ({"vocab_size": 200}, ["200"]),
        ({"qk_rope_head_dim": 5}, ["qk_rope_head_dim", "5", "even"]),
        ({"hidden_size": "wide"}, ["hidden_size", "'wide'"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    workplace: Path, copied: Path, changes: dict[str, Any], words: list[str]
) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | changes))
    assert_refused(workplace, copied, words)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_checkpoint_without_one_of_its_files_is_named(
    workplace: Path, copied: Path, name: str
) -> None:
    (copied / name).unlink()
    assert_refused(workplace, copied, [name, "no such file"])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_checkpoint_with_a_broken_file_is_named(workplace: Path, copied: Path, name: str) -> None:
    (copied / name).write_text("{")
    assert_refused(workplace, copied, [name, "not valid JSON"])


def test_a_tokenizer_that_is_larger_than_its_model_is_refused(
    workplace: Path, copied: Path
) -> None:
    raw = json.loads((copied / "tokenizer.json").read_text())
    first = len(raw["model"]["vocab"])
    for number in range(first, 310):
        raw["added_tokens"].append(
            raw["added_tokens"][0] | {"id": number, "content": f"<{number}>"}
        )
    (copied / "tokenizer.json").write_text(json.dumps(raw))
    assert_refused(workplace, copied, ["tokenizer has 310 ids", "vocab_size is 300"])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("model.hidden_size=64", ["run", "model.hidden_size is 32 there and 64 here"]),
        ("train.steps=7", ["run", "train.steps is 6 there and 7 here"]),
        ("data.paths=.", ["run", "data.paths"]),
    ],
)
def test_a_run_of_another_configuration_is_left_alone(
    workplace: Path, assignment: str, words: list[str]
) -> None:
    arguments = ["train", "micro.toml", "--out", "run", "--set", assignment]
    assert_names(fork(*arguments, cwd=workplace).complaint(), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nope.toml"], ["nope.toml", "no such"]),
        (["train", "text"], ["text", "folder"]),
        (["train", "text/1.py"], ["text/1.py", "not valid TOML"]),
        (["train", "micro.toml", "--out", "text"], ["text", "no run"]),
        (["train", "micro.toml", "--out", "text/1.py"], ["text/1.py", "is a file"]),
        (["train", "micro.toml", "--out", "text/1.py/new"], ["text/1.py/new", "Not a directory"]),
        (["demo", "--out", "text", "--set", "train.steps=1"], ["text", "no run"]),
        (["convert", "run", "text"], ["text", "exists already"]),
        (["convert", "run", "text/1.py/new"], ["text/1.py/new", "Not a directory"]),
        (["xray", "run", "a", "--out", "text/1.py/a.html"], ["text/1.py/a.html", "File exists"]),
        (["xray", "run", "a", "--out", "text"], ["text", "Is a directory"]),
    ],
)
def test_a_place_that_cannot_be_used_is_named(
    workplace: Path, arguments: list[str], words: list[str]
) -> None:
    assert_names(fork(*arguments, cwd=workplace).complaint(), words)


@pytest.mark.parametrize("command", [["train", "micro.toml"], ["demo"]])
def test_a_folder_in_which_another_process_trains_is_refused(
    workplace: Path, tmp_path: Path, command: list[str]
) -> None:
    with alone_in(tmp_path / "runs/new"):
        complaint = fork(*command, "--out", tmp_path / "runs/new", cwd=workplace).complaint()
        assert_names(complaint, [str(tmp_path / "runs/new"), "another process is training there"])
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_without_write_access_is_named(workplace: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for command in (["train", "micro.toml", "--out"], ["convert", "run"]):
        complaint = fork(*command, tmp_path / "new", cwd=workplace).complaint()
        assert_names(complaint, [str(tmp_path / "new"), "Permission denied"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("latest", "step-00000099", ["latest", "step-00000099"]),
        ("latest", "../text", ["latest", "'../text'"]),
        ("latest", b"\xff\xfe", ["latest", "correct the file"]),
        ("config.toml", "[model", ["config.toml", "not valid TOML"]),
        ("config.toml", tomli_w.dumps({"modle": {}}), ["modle", "hint: model"]),
    ],
)
def test_a_run_folder_with_a_broken_file_is_named(
    workplace: Path,
    model: Path,
    tmp_path: Path,
    name: str,
    content: str | bytes,
    words: list[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(model, folder)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = digest(folder)
    complaint = fork("train", "micro.toml", "--out", folder, cwd=workplace).complaint()
    assert_names(complaint, words)
    assert digest(folder) == before


def test_a_flipped_byte_in_the_training_ids_is_found(
    workplace: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(model, folder)
    ids = folder / "data/train.bin"
    ids.write_bytes(bytes([ids.read_bytes()[0] ^ 1]) + ids.read_bytes()[1:])
    complaint = fork("train", "micro.toml", "--out", folder, cwd=workplace).complaint()
    assert_names(complaint, [str(ids), "damaged"])


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


def assert_names(complaint: str, words: list[str]) -> None:
    assert not [word for word in words if word not in complaint], complaint


def assert_refused(workplace: Path, folder: Path, words: list[str]) -> None:
    before = digest(folder)
    for command in (["generate", folder, "a"], ["convert", folder, "new"]):
        assert_names(fork(*command, cwd=workplace).complaint(), words)
    assert digest(folder) == before


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }
