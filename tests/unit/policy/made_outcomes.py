"""Outcomes made up for tests: sums are hard for the small model, greetings are not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.policy.outcomes import Outcomes
from moestro.policy.store import POLICY_FILE, WEIGHTS_FILE

EASY = ("Say hello to {}", "Greet my friend {}", "Write a kind word for {}")
HARD = ("Integrate x^{} over the line", "Prove that {} divides n^3", "Solve y'' = {} y")


def make_outcomes(num_rows: int = 120, num_models: int = 2, seed: int = 0) -> Outcomes:
    """Return rows of which half are hard; model 0 fails those, the last one nearly none."""
    draw = np.random.default_rng(seed)
    prompts, scores = [], []
    for row in range(num_rows):
        is_hard = row % 2
        kinds = HARD if is_hard else EASY
        prompts.append(f"{kinds[row % 3]} {draw.integers(100)}".format(draw.integers(1000)))
        chances = [0.95 - is_hard * 0.9 * (1 - m / (num_models - 1)) for m in range(num_models)]
        scores.append([float(draw.random() < chance) for chance in chances])
    names = ("small", "large") if num_models == 2 else tuple(f"m{m}" for m in range(num_models))
    return Outcomes(
        tuple(prompts),
        names,
        np.array(scores),
        np.full((num_rows, num_models), np.nan),
        np.zeros(num_rows, dtype=np.int64),
        np.full((num_rows, num_models), np.nan),
        np.full((num_rows, num_models), None),
    )


def write_csv(outcomes: Outcomes, path: Path) -> Path:
    """Write outcomes as CSV."""
    lines = [",".join(["prompt", *outcomes.models])]
    for prompt, scores in zip(outcomes.prompts, outcomes.scores_NM, strict=True):
        lines.append(",".join([f'"{prompt}"', *(str(bool(s)) for s in scores)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_json_lines(outcomes: Outcomes, path: Path) -> Path:
    """Write outcomes as JSON lines."""
    rows = zip(outcomes.prompts, outcomes.scores_NM, strict=True)
    lines = [
        json.dumps({"prompt": p, "scores": dict(zip(outcomes.models, s.tolist(), strict=True))})
        for p, s in rows
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_weights_of_before(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put other weights into a policy's folder, as when policies had no digest of theirs."""
    np.savez(folder / WEIGHTS_FILE, **dict(arrays))
    said = json.loads((folder / POLICY_FILE).read_text())
    del said["weights_sha256"]
    (folder / POLICY_FILE).write_text(json.dumps(said))
