"""Every command on a real, tiny run: what it prints, what it leaves on disk, and that these agree.

Each command is started whole once; see program.py. Next: test_bad_input.py.
"""

import ast
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DeepseekV3ForCausalLM

import moestro
from moestro import settings
from moestro.model.count import prefill_flops
from moestro.ops.choose import chosen_kernels
from tests.flow.conftest import SHAPE, SIZES
from tests.flow.program import TIMEOUT_S, Ended, fork, run, start

NUM_STEPS = 6


def test_train_prints_what_the_run_came_to(trained: Ended, model: Path) -> None:
    printed, rows = trained.document(), metrics(model)
    assert {"run", "step", "loss", "tokens_per_s"} <= printed.keys()
    assert (printed["run"], printed["step"]) == ("run", NUM_STEPS)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert printed["loss"] == rows[-1]["loss"]
    assert 0 < printed["loss"] < rows[0]["loss"]
    assert printed["tokens_per_s"] > 0
    assert f"step {NUM_STEPS}/{NUM_STEPS}" in trained.err


def test_train_leaves_a_whole_run_folder(model: Path, checkpoint: Path) -> None:
    config = settings.load(model / "config.toml")
    assert config["model"]["hidden_size"] == SHAPE["hidden_size"]
    # Resolved: a preset's settings and every default stand there as well.
    assert config["model"]["num_experts_per_tok"] == 4
    assert config["train"]["optimizer"]["kind"] == "muon"
    assert list((model / "tensorboard").glob("events.out.tfevents.*"))
    report = (model / "report.html").read_text(encoding="utf-8")
    assert report.lstrip().startswith("<!doctype html>")
    assert "<script src=" not in report, "the report does not open offline"
    assert checkpoint.name == f"step-{NUM_STEPS:08d}"
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer",
    }


def test_a_run_of_ours_is_a_model_of_any_deepseek_v3_program(model: Path, checkpoint: Path) -> None:
    ours = moestro.load(model)
    tokens = ours.tokenizer.encode("alpha beta (x) = delta\n")
    logits = ours.logits(tokens)
    assert (logits.dtype, logits.shape) == (np.float32, (len(tokens), SHAPE["vocab_size"]))
    theirs = DeepseekV3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(logits - expected).max() <= 1e-4


def test_set_overrides_the_file(workplace: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assignments = sets({"train": {"steps": 2, "optimizer": {"kind": "adamw"}}})
    printed = fork("train", "micro.toml", "--out", out, "--json", *assignments, cwd=workplace)
    assert printed.document()["step"] == 2
    config = settings.load(out / "config.toml")["train"]
    assert (config["steps"], config["optimizer"]["kind"]) == (2, "adamw")
    assert config["seq_len"] == SIZES["seq_len"]


@pytest.mark.parametrize(
    ("words", "ways"),
    [("moestro gen", "generate"), ("moestro generate --t", "--temperature\n--top-p")],
)
def test_a_shell_is_told_what_may_come_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, ways: str
) -> None:
    # As the script does that `moestro --install-completion` gives to bash.
    monkeypatch.setenv("_MOESTRO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert run(cwd=tmp_path) == Ended(0, f"{ways}\n", "")


def test_generate_prints_a_text_and_repeats_it(workplace: Path, model: Path) -> None:
    first = generate(workplace, "--temperature", 1, "--seed", 5, "--max-tokens", 20, whole=True)
    assert {"text", "tokens", "mean_experts"} <= first.keys()
    assert 0 < len(first["tokens"]) <= 20
    assert moestro.load(model).tokenizer.decode(first["tokens"]) == first["text"]
    again = generate(workplace, "--temperature", 1, "--seed", 5, "--max-tokens", 20)
    assert again == first
    other = generate(workplace, "--temperature", 1, "--seed", 6, "--max-tokens", 20)
    assert other["tokens"] != first["tokens"]


def test_generate_takes_no_more_tokens_and_experts_than_it_is_given(
    workplace: Path, model: Path
) -> None:
    assert len(generate(workplace, "--max-tokens", 3)["tokens"]) <= 3
    # As many as fit into the context behind the prompt, however many are asked for.
    room = SHAPE["max_position_embeddings"] - len(moestro.load(model).tokenizer.encode("alpha")) - 1
    assert len(generate(workplace, "--max-tokens", 500)["tokens"]) <= room
    assert generate(workplace)["mean_experts"] == 4.0
    assert generate(workplace, "--experts", 2)["mean_experts"] == 2.0
    assert 2.0 <= generate(workplace, "--experts", 2.5)["mean_experts"] <= 4.0


def test_generate_prints_prompt_and_completion_for_a_person(workplace: Path, model: Path) -> None:
    expected = generate(workplace, "--max-tokens", 8)["text"]
    ended = fork("generate", "run", "alpha", "--max-tokens", 8, cwd=workplace)
    assert (ended.status, ended.out, ended.err) == (0, f"alpha{expected}\n", "")


def test_score_adds_up(workplace: Path, model: Path) -> None:
    found = run("score", "run", "text/1.py", "text/2.py", "--json", cwd=workplace).document()
    size = sum((workplace / f"text/{number}.py").stat().st_size for number in (1, 2))
    assert (found["documents"], found["bytes"]) == (2, size)
    nats = found["nats_per_token"] * found["tokens"]
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert found["mean_experts"] == 4.0
    assert found["experts_histogram"] == {"4": found["tokens"]}
    assert len(found["max_violation"]) == 1
    assert found["max_violation"][0] >= 0


def test_score_tells_in_its_document_what_it_left_out(
    workplace: Path, model: Path, tmp_path: Path
) -> None:
    for name, data in {"a": b"alpha beta\n", "b": b"alpha  beta\n", "c": b"", "d": b"\0"}.items():
        (tmp_path / name).write_bytes(data)
    found = run("score", "run", tmp_path, "--json", cwd=workplace).document()
    assert found["documents"] == 1
    reasons = {reason: number for reason, number in found["left_out"].items() if number}
    assert reasons == {"duplicate": 1, "empty": 1, "binary": 1}


def test_score_at_a_budget_counts_the_experts_that_were_taken(workplace: Path, model: Path) -> None:
    found = score(workplace, "run", "--experts", 3)
    histogram = {int(k): count for k, count in found["experts_histogram"].items()}
    assert set(histogram) <= {2, 3, 4}
    assert sum(histogram.values()) == found["tokens"]
    mean = sum(k * count for k, count in histogram.items()) / found["tokens"]
    assert found["mean_experts"] == pytest.approx(mean)
    assert 2.0 <= mean <= 4.0
    assert score(workplace, "run", "--experts", 2)["mean_experts"] == 2.0


@pytest.mark.slow
def test_bench_tells_speed_beside_the_machines_limits(workplace: Path, model: Path) -> None:
    ended = run("bench", "run", "--json", cwd=workplace)
    found = ended.document()
    # On a busy machine a round takes long: it says where it is.
    said = [line for line in ended.err.splitlines() if not line.startswith("INFO")]
    assert said == ["loading", "warming up", *(f"measuring, {n} of 5" for n in range(1, 6))]
    assert found["kernels"] == chosen_kernels().kernels.name
    assert found["reason"]
    assert min(found["prefill_tokens_per_s"], found["decode_tokens_per_s"]) > 0
    length = found["prompt_tokens"]
    flops = (
        prefill_flops(moestro.load(model).config, length) * found["prefill_tokens_per_s"] / length
    )
    assert found["prefill_share_of_peak"] == pytest.approx(flops / found["peak_flops"])
    expected = found["decode_tokens_per_s"] * found["bytes_per_token"] / found["read_bytes_per_s"]
    assert found["decode_share_of_bandwidth"] == pytest.approx(expected)


def test_inspect_tells_a_runs_model(workplace: Path, model: Path, checkpoint: Path) -> None:
    found = run("inspect", "run", "--json", cwd=workplace).document()
    assert found["architecture"] == "DeepseekV3ForCausalLM"
    assert found["bytes"] == (checkpoint / "model.safetensors").stat().st_size
    tensors = moestro.load(model).model.state_dict().values()
    total = found["parameters"] + found["mtp_parameters"]
    assert total == sum(tensor.numel() for tensor in tensors)
    active = [found["active_parameters"][budget] for budget in ("2", "3", "4")]
    assert active == sorted(active)
    assert active[-1] < found["parameters"]
    numbers = SHAPE["num_hidden_layers"] * (SHAPE["kv_lora_rank"] + SHAPE["qk_rope_head_dim"])
    assert found["cache_bytes_per_token"] == 2 * numbers
    assert (found["experts"]["routed"], found["experts"]["shared"]) == (8, 1)
    assert (found["budget"]["min"], found["budget"]["max"]) == (2, 4)
    assert found["budget"]["is_learned"]


def test_xray_shows_every_tokens_experts(workplace: Path, model: Path, tmp_path: Path) -> None:
    text, page = "alpha beta\n(x) = gamma", tmp_path / "page.html"
    arguments = ("xray", "run", text, "--experts", 3, "--out", page, "--json")
    tokens = run(*arguments, cwd=workplace).document()["tokens"]
    assert "".join(token["text"] for token in tokens) == text
    for token in tokens:
        assert token["nats"] >= 0
        (layer,) = token["experts"]
        assert 2 <= len({use["expert"] for use in layer}) == len(layer) <= 4
        assert sum(use["weight"] for use in layer) == pytest.approx(1.0, abs=1e-4)
    assert "<html" in page.read_text(encoding="utf-8")


def test_xray_says_in_numbers_what_a_pipe_has_no_colours_for(workplace: Path, model: Path) -> None:
    text = "alpha beta\n(x) = gamma"
    *lines, last = fork("xray", "run", text, cwd=workplace).out.splitlines()
    assert last == "experts by token, mean over layers"
    shown = [line.split(maxsplit=1) for line in lines]
    assert "".join(ast.literal_eval(token) for _, token in shown) == text
    assert all(2 <= float(mean) <= 4 for mean, _ in shown)


def test_convert_to_bfloat16_keeps_the_model(
    workplace: Path, model: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bf16"
    arguments = ("convert", "run", out, "--to", "hf", "--dtype", "bfloat16", "--json")
    printed = run(*arguments, cwd=workplace).document()
    assert printed["path"] == str(out)
    assert printed["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert weights_size(out) < 0.6 * weights_size(checkpoint)
    assert_scores_alike(score(workplace, out), score(workplace, "run"), 0.01)
    # A checkpoint's folder is a model as well as its run's is.
    assert score(workplace, checkpoint) == score(workplace, "run")


def test_convert_to_fp8_and_back_keeps_the_model(
    workplace: Path, model: Path, tmp_path: Path
) -> None:
    small, back = tmp_path / "fp8", tmp_path / "back"
    fork("convert", "run", small, "--quantize", "fp8", "--json", cwd=workplace).document()
    config = json.loads((small / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "fp8"
    assert_scores_alike(score(workplace, small), score(workplace, "run"), 0.03)
    fork("convert", small, back, "--dtype", "float32", "--json", cwd=workplace).document()
    assert "quantization_config" not in json.loads((back / "config.json").read_text())
    assert_scores_alike(score(workplace, back), score(workplace, small), 1e-4)


@pytest.mark.parametrize(("kind", "share", "rise"), [("int8", 0.45, 0.005), ("int4", 0.35, 0.2)])
def test_convert_to_codes_says_what_they_cost(
    workplace: Path, model: Path, checkpoint: Path, tmp_path: Path, kind: str, share: float,
    rise: float,
) -> None:  # fmt: skip
    out = tmp_path / kind
    arguments = ("convert", "run", out, "--quantize", kind, "--text", "text", "--json")
    printed = run(*arguments, cwd=workplace).document()
    assert weights_size(out) < share * weights_size(checkpoint)
    loss = printed["loss"]
    assert loss["text"] == "text"
    for when, place in (("before", "run"), ("after", out)):
        nats = fork("score", place, "text", "--json", cwd=workplace).document()["nats_per_token"]
        assert loss[when]["nats_per_token"] == pytest.approx(nats, rel=1e-5)
        assert loss[when]["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert abs(loss["perplexity_rise"]) < rise
    fork("generate", out, "alpha", "--json", cwd=workplace).document()
    assert fork("xray", out, "alpha", "--json", cwd=workplace).document()["tokens"]
    plain = tmp_path / "plain"
    fork("convert", out, plain, "--dtype", "float32", "--json", cwd=workplace).document()
    assert_scores_alike(score(workplace, plain), score(workplace, out), 0.05)


def test_convert_to_gguf_makes_a_file_that_every_command_reads(
    workplace: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.gguf"
    printed = fork("convert", "run", out, "--to", "gguf", "--json", cwd=workplace).document()
    assert printed["bytes"] == out.stat().st_size
    assert_scores_alike(score(workplace, out), score(workplace, "run"), 1e-3)
    inspected = fork("inspect", out, "--json", cwd=workplace).document()
    assert inspected["bytes"] == out.stat().st_size
    assert inspected["budget"]["is_learned"]
    fork("generate", out, "alpha", "--json", cwd=workplace).document()


def test_convert_measures_codes_on_what_the_run_held_out(
    workplace: Path, model: Path, tmp_path: Path
) -> None:
    shown = fork("convert", "run", tmp_path / "new", "--quantize", "int8", cwd=workplace)
    assert "held-out text of the run" in shown.out
    assert "perplexity" in shown.out


def test_convert_gives_a_checkpoint_without_a_budget_its_table(
    workplace: Path, checkpoint: Path, tmp_path: Path
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "calibrated"
    shutil.copytree(checkpoint, plain)
    config = json.loads((plain / "config.json").read_text())
    del config["budget"], config["min_experts_per_tok"]
    (plain / "config.json").write_text(json.dumps(config))
    refused = fork("score", plain, "text/1.py", "--experts", 3, cwd=workplace).complaint()
    assert "experts is 3.0" in refused
    arguments = ("--calibrate", "text", "--min-experts", 2, "--json")
    fork("convert", plain, out, *arguments, cwd=workplace).document()
    assert fork("inspect", out, "--json", cwd=workplace).document()["budget"]["is_learned"]
    found = score(workplace, out, "--experts", 3)
    assert found["mean_experts"] == pytest.approx(3.0, abs=0.2)
    assert_scores_alike(score(workplace, out), score(workplace, plain), 1e-6)


@pytest.mark.slow
def test_demo_trains_shows_and_goes_on(workplace: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    tables = {"model": SHAPE, "data": {"paths": ["text"], "held_out": 0.2}, "train": SIZES}
    arguments = ["demo", "--out", out, "--minutes", 0.05, *sets(tables)]
    shown = run(*arguments, cwd=workplace)
    assert shown.status == 0, shown.err
    for words in ("Bits per byte", "gzip", "xz", "n-gram", "experts per token", "report.html"):
        assert words in shown.out, words
    assert "What to type next" in shown.out
    assert "measuring this machine" in shown.err
    steps = metrics(out)[-1]["step"]
    assert steps >= 20
    # Who gets a poor model hears why before waiting for it.
    assert ("slow or busy" in shown.err) == (steps < 500)
    again = fork(*arguments, "--json", cwd=workplace)
    found = again.document()
    # A long path may lie on a line of its own.
    assert f"going on with {out}" in " ".join(again.err.split())
    assert {"run", "bits_per_byte", "mean_experts", "max_violation"} <= found.keys()
    assert (found["run"], found["step"]) == (str(out), steps)
    assert found["bits_per_byte"] > 0
    assert set(found["baselines"]) == {"gzip", "xz", "ngram"}
    other = fork("demo", "--out", out, "--set", "train.seed=7", cwd=workplace).complaint()
    assert "train.seed is 0 there and 7 here" in other


@pytest.mark.slow
def test_ctrl_c_saves_the_run_and_the_same_command_goes_on(workplace: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("train", "micro.toml", "--out", out, "--set", "train.steps=100", "--json")
    with start(*arguments, cwd=workplace) as process:
        assert process.stderr is not None
        seen = []
        while not (seen and seen[-1].startswith("step ")):
            seen.append(process.stderr.readline())
            assert seen[-1], "".join(seen)
        process.send_signal(signal.SIGINT)
        printed, rest = process.communicate(timeout=TIMEOUT_S)
    stopped = Ended(process.returncode, printed, rest)
    step = metrics(out)[-1]["step"]
    assert step < 100
    place = out / f"checkpoints/step-{step:08d}"
    expected = f"stopped after step {step}: saved {place}; the same command goes on"
    assert stopped.complaint() == expected
    assert (out / "latest").read_text().strip() == place.name
    assert fork(*arguments, cwd=workplace).document()["step"] == 100
    assert [row["step"] for row in metrics(out)] == list(range(1, 101))


def sets(tables: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tables.items():
        name = f"{prefix}{key}"
        found += (
            sets(value, f"{name}.") if isinstance(value, dict) else ["--set", f"{name}={value}"]
        )
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def generate(workplace: Path, *arguments: object, whole: bool = False) -> dict[str, Any]:
    how = run if whole else fork
    return how("generate", "run", "alpha", "--json", *arguments, cwd=workplace).document()


def score(workplace: Path, place: object, *arguments: object) -> dict[str, Any]:
    return fork("score", place, "text/1.py", "--json", *arguments, cwd=workplace).document()


def weights_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def assert_scores_alike(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for name in ("documents", "bytes", "tokens", "experts_histogram"):
        assert found[name] == expected[name]
    assert found["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=tolerance)
