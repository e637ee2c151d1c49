"""Claim: the default balance method starves no expert, keeps loads within 10 %, and costs no loss.

Every method at the same settings and seeds: held-out loss, load violation by layer over the whole
evaluation, with all experts and at the middle budget, starved experts, and how far apart the
domains' loads lie (Python, C headers, English prose).

    python benchmarks/balance.py [--steps 300] [--seeds 1]
"""

import argparse
import statistics
from typing import Any

from experiment import configure, evaluate_at, held_out, prepare, said, train_once, write_result
from rich.console import Console
from rich.table import Table

from moestro.lm.specialization import Divergence, divergence
from moestro.train.run import Run

ALONE: dict[str, Any] = {"sequence_weight": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "proportional": ALONE | {"method": "proportional"},
    "quantile": ALONE | {"method": "quantile", "rate": 0.3},
    "sign 0.001": ALONE | {"method": "sign", "rate": 0.001},
    "sign 0.01": ALONE | {"method": "sign", "rate": 0.01},
    "global_aux": {"method": "global_aux", "weight": 1e-2},
    "sequence_aux": {"method": "sequence_aux", "weight": 1e-2},
    "none": {"method": "none"},
}
DOMAINS = ("python", "c", "prose")
MIDDLE = 3.0


def main() -> None:
    """Train every method and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    run = prepare("demo", {})
    rows = []
    for name in arguments.methods:
        for seed in range(arguments.seeds):
            with said(f"{name}, seed {seed}"):
                rows.append(measure(run, name, arguments.steps, seed))
    table = Table(
        "method",
        "nats/token",
        "at 3",
        "violation by layer",
        "worst",
        "at 3",
        "starved",
        "divergence",
    )
    for name in arguments.methods:
        own = [row for row in rows if row["method"] == name]
        table.add_row(
            name,
            f"{statistics.mean(row['nats_per_token'] for row in own):.4f}",
            f"{statistics.mean(row['middle_nats_per_token'] for row in own):.4f}",
            " ".join(f"{value:.2f}" for value in mean_by_layer(own)),
            f"{statistics.mean(max(row['max_violation']) for row in own):.3f}",
            f"{statistics.mean(max(row['middle_max_violation']) for row in own):.3f}",
            f"{sum(row['num_starved'] for row in own)}",
            f"{statistics.mean(row['divergence'] for row in own):.3f}",
        )
    Console(width=140).print(table)
    print(write_result("balance", {"steps": arguments.steps, "rows": rows}))


def measure(run: Run, name: str, steps: int, seed: int) -> dict[str, Any]:
    """Train with one method and evaluate it."""
    config = configure(run, {"train": {"steps": steps, "seed": seed, "balance": METHODS[name]}})
    documents = held_out(run, 300_000)
    outcome = train_once(run, config, documents[:1])
    assert outcome.stepper is not None
    result = evaluate_at(run, outcome.stepper, documents, None)
    middle = evaluate_at(run, outcome.stepper, documents, MIDDLE)
    by_domain = {
        domain: evaluate_at(run, outcome.stepper, held_out(run, 40_000, domain), None)
        for domain in DOMAINS
    }
    return {
        "method": name,
        "seed": seed,
        "nats_per_token": result.nats_per_token,
        "bits_per_byte": result.bits_per_byte,
        "max_violation": result.max_violation,
        "middle_nats_per_token": middle.nats_per_token,
        "middle_max_violation": middle.max_violation,
        "middle_mean_experts": middle.mean_experts,
        "num_starved": sum(len(layer) for layer in result.starved),
        "divergence": mean_divergence(divergence(by_domain)),
        "last_step_violations": outcome.steps[-1].violations,
    }


def mean_by_layer(rows: list[dict[str, Any]]) -> list[float]:
    """Return each layer's violation, mean over seeds."""
    return [
        statistics.mean(layer) for layer in zip(*(r["max_violation"] for r in rows), strict=True)
    ]


def mean_divergence(found: Divergence | None) -> float:
    """Return the mean over pairs of different domains."""
    assert found is not None
    num = len(found.domains)
    return float(found.mean_NN.sum() / (num * (num - 1)))


if __name__ == "__main__":
    main()
