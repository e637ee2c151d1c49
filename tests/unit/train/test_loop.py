"""A run ends with thresholds that belong to its last weights.

Shapes: B sequences, S tokens.
"""

import random
from pathlib import Path

import torch

from moestro.model.gate import further_scores
from moestro.model.trace import Trace
from moestro.train.budget import FRACTIONS, further_quantiles
from moestro.train.config import build_run_config
from moestro.train.loop import train
from moestro.train.run import open_run
from tests.builders import MICRO_SHAPE

STEPS, BATCH_SIZE, SEQ_LEN = 9, 4, 16


def test_the_last_thresholds_are_quantiles_under_the_last_weights(tmp_path: Path) -> None:
    train_settings = {"seq_len": SEQ_LEN, "batch_size": BATCH_SIZE, "steps": STEPS}
    tables = {
        "model": MICRO_SHAPE | {"vocab_size": 300},
        "data": {"paths": [str(write_text(tmp_path / "text"))], "held_out": 0.2},
        "train": train_settings | {"dtype": "float32", "device": "cpu"},
    }
    run = open_run(build_run_config(tables), tmp_path / "run")
    model = train(run, []).model
    # No budget changes what reaches the first gate. An eighth of nine steps is two.
    trace, loader = Trace(), run.loader()
    tokens_BS = torch.cat([torch.from_numpy(loader.batch(STEPS + step)) for step in range(2)])
    with torch.no_grad():
        model(tokens_BS[:, :SEQ_LEN], budget=3.0, trace=trace)
    further_TF = further_scores(trace.gates[0].ranked_TK, model.config.fewest_experts)
    expected_N = further_quantiles(further_TF, FRACTIONS)
    torch.testing.assert_close(model.gates()[0].thresholds_N, expected_N, atol=1e-5, rtol=0)


def write_text(folder: Path) -> Path:
    folder.mkdir()
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "return", "print", "(x)", "=", "\n"]
    for number in range(20):
        lines = " ".join(draw.choice(words) for _ in range(60))
        (folder / f"{number}.py").write_text(f"# {number}\n{lines}\n")
    return folder
