"""Claim: sparse + budget + Muon reaches a dense AdamW model's final loss in half its time.

The dense model (equal active size) trains with AdamW at its best learning rate of several. Each
contender trains over several horizons, each with its own whole schedule; where the final losses
cross the dense model's, read off between horizons, is the contender's cost, in seconds and in
tokens. Factors one by one: Muon alone, sparse alone, both, both with drawn budgets. Learning rates
of AdamW and Muon are tuned alike, on the first seed.

    python benchmarks/quality_per_cost.py [--tokens-per-parameter 50] [--seeds 3] [--shape micro]
"""

import argparse
import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from experiment import configure, held_out, prepare, said, train_once, write_result
from rich.console import Console
from rich.table import Table

from moestro.model.count import active_parameters
from moestro.train.run import Run

# Small enough that fifty tokens per active parameter are minutes on two cores.
SHAPES: dict[str, dict[str, Any]] = {
    "micro": {
        "model": {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "moe_intermediate_size": 48,
            "intermediate_size": 192,
            "kv_lora_rank": 32,
            "vocab_size": 512,
            "num_nextn_predict_layers": 0,
            "max_position_embeddings": 256,
        },
        "tokenizer": {"vocab_size": 512},
        "train": {"seq_len": 256, "batch_size": 16},
    },
    "demo": {"model": {"num_nextn_predict_layers": 0}, "train": {"seq_len": 512, "batch_size": 4}},
}
MEAN_EXPERTS = 3


@dataclass(frozen=True)
class Contender:
    """One way to train: sparse or dense, its optimizer, fixed or drawn budget."""

    name: str
    is_sparse: bool
    optimizer: str
    is_budget_drawn: bool = False


BASELINE = Contender("dense + AdamW", is_sparse=False, optimizer="adamw")
CONTENDERS = (
    Contender("dense + Muon", is_sparse=False, optimizer="muon"),
    Contender("sparse + AdamW", is_sparse=True, optimizer="adamw"),
    Contender("sparse + Muon", is_sparse=True, optimizer="muon"),
    Contender("sparse + Muon + budget", is_sparse=True, optimizer="muon", is_budget_drawn=True),
)


def main() -> None:
    """Tune, train, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="micro", choices=list(SHAPES))
    parser.add_argument("--tokens-per-parameter", type=float, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 4e-3, 8e-3, 1.6e-2])
    parser.add_argument("--horizons", nargs="+", type=float, default=[0.25, 0.4, 0.6])
    arguments = parser.parse_args()
    study = Study(arguments.shape, arguments.tokens_per_parameter)
    rows = study.baseline(arguments.rates, arguments.seeds)
    for contender in CONTENDERS:
        rows += study.contend(contender, arguments.rates, arguments.horizons, arguments.seeds)
    show(rows)
    print(
        write_result(
            "quality_per_cost", {"shape": arguments.shape, "full_steps": study.steps, "rows": rows}
        )
    )


class Study:
    """Runs of one shape at one length."""

    def __init__(self, shape: str, tokens_per_parameter: float) -> None:
        self.tables = SHAPES[shape]
        self.run: Run = prepare(shape, self.tables)
        self.documents = held_out(self.run, 100_000)
        config = configure(self.run, self.tables, MEAN_EXPERTS)
        active = active_parameters(config.model, MEAN_EXPERTS)
        per_step = config.train.batch_size * config.train.seq_len
        self.steps = math.ceil(tokens_per_parameter * active / per_step)

    def baseline(self, rates: list[float], seeds: int) -> list[dict[str, Any]]:
        """Train the dense model at every rate, then at the best for the other seeds."""
        tuned = [self.once(BASELINE, rate, 1.0, 0) for rate in rates]
        best = min(tuned, key=lambda row: row["nats_per_token"])
        return [*tuned, *(self.once(BASELINE, best["rate"], 1.0, seed) for seed in range(1, seeds))]

    def contend(
        self, contender: Contender, rates: list[float], horizons: list[float], seeds: int
    ) -> list[dict[str, Any]]:
        """Tune at the middle horizon, then train every horizon for every seed."""
        middle = horizons[len(horizons) // 2]
        tuned = [self.once(contender, rate, middle, 0) for rate in rates]
        best = min(tuned, key=lambda row: row["nats_per_token"])["rate"]
        rest = [(h, s) for h in horizons for s in range(seeds) if (h, s) != (middle, 0)]
        return [*tuned, *(self.once(contender, best, horizon, seed) for horizon, seed in rest)]

    def once(self, contender: Contender, rate: float, horizon: float, seed: int) -> dict[str, Any]:
        """Train once and return what it cost and gave."""
        steps = max(1, round(self.steps * horizon))
        optimizer = {
            "kind": contender.optimizer,
            "learning_rate": rate,
            "adamw_learning_rate": rate,
        }
        train = {
            "steps": steps,
            "seed": seed,
            "optimizer": optimizer,
            "is_budget_drawn": contender.is_budget_drawn,
        }
        tables = {"train": self.tables["train"] | train, "model": self.tables["model"]}
        if contender.is_sparse and not contender.is_budget_drawn:
            fixed = {"num_experts_per_tok": MEAN_EXPERTS, "min_experts_per_tok": MEAN_EXPERTS}
            tables["model"] = tables["model"] | fixed
        config = configure(self.run, tables, None if contender.is_sparse else MEAN_EXPERTS)
        budget = float(MEAN_EXPERTS) if contender.is_budget_drawn else None
        with said(f"{contender.name}, rate {rate:g}, {steps} steps, seed {seed}"):
            point = train_once(self.run, config, self.documents, budget=budget).curve[-1]
        cost = {
            "seconds": point.seconds,
            "tokens": point.tokens,
            "nats_per_token": point.nats_per_token,
        }
        return {"name": contender.name, "rate": rate, "horizon": horizon, "seed": seed} | cost


def show(rows: list[dict[str, Any]]) -> None:
    """Print what each contender paid for the dense model's final loss, as a share of its cost."""
    base = best_rate(rows, BASELINE.name)
    target = statistics.mean(row["nats_per_token"] for row in base)
    table = Table(
        "contender",
        "rate",
        "nats/token by horizon",
        "seconds",
        "tokens",
        title=f"to {target:.4f} nats/token",
    )
    for contender in CONTENDERS:
        own = best_rate(rows, contender.name)
        curve = " ".join(f"{h:g}: {nats:.4f}" for h, _, _, nats in by_horizon(own))
        costs = [reach(by_horizon(own), target, column) for column in (1, 2)]
        full = [statistics.mean(row[key] for row in base) for key in ("seconds", "tokens")]
        shares = [
            "not reached" if c is None else f"{c / f:.2f}x"
            for c, f in zip(costs, full, strict=True)
        ]
        table.add_row(contender.name, f"{own[0]['rate']:g}", curve, *shares)
    Console(width=140).print(table)


def best_rate(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return a contender's runs at its best learning rate."""
    own = [row for row in rows if row["name"] == name]
    tuned = {
        row["horizon"]
        for row in own
        if sum(r["horizon"] == row["horizon"] for r in own if r["seed"] == 0) > 1
    }
    first = [row for row in own if row["seed"] == 0 and row["horizon"] in tuned] or own
    best = min(first, key=lambda row: row["nats_per_token"])["rate"]
    return [row for row in own if row["rate"] == best]


def by_horizon(rows: list[dict[str, Any]]) -> list[tuple[float, float, float, float]]:
    """Return (horizon, seconds, tokens, nats), means over seeds, shortest first."""

    def mean(horizon: float, key: str) -> float:
        return statistics.mean(row[key] for row in rows if row["horizon"] == horizon)

    horizons = sorted({row["horizon"] for row in rows})
    return [(h, mean(h, "seconds"), mean(h, "tokens"), mean(h, "nats_per_token")) for h in horizons]


def reach(
    curve: list[tuple[float, float, float, float]], target: float, column: int
) -> float | None:
    """Return the cost at which the curve crosses the target, between horizons on a log scale."""
    for low, high in pairwise(curve):
        if high[3] <= target <= low[3]:
            share = (low[3] - target) / (low[3] - high[3])
            return math.exp(math.log(low[column]) * (1 - share) + math.log(high[column]) * share)
    # Better than the target at the shortest horizon already: that horizon is an upper bound.
    return curve[0][column] if curve[0][3] <= target else None


if __name__ == "__main__":
    main()
