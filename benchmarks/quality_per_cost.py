"""Claim: sparse + budget + Muon reaches a dense AdamW model's final loss in half its time.

The dense model (equal active size) trains with AdamW at its best learning rate of several. Each
contender trains over several horizons, each with its own whole schedule; where the final losses
cross the dense model's, read off between horizons, is the contender's cost, in seconds and in
tokens. Factors one by one: Muon alone, sparse alone, both, both with drawn budgets. Learning rates
of AdamW and Muon are tuned alike, on the first seed, but the dense model's on all of them: its best
is the goal. Models of drawn budgets are also asked at 2.5 experts, beside the fixed 3
(asked: at most 0.005 nats more).

Every run has one core to itself, and as many run at once as there are cores. What a step costs is
timed afterwards, all kinds in turns, so that no run pays for what shared the machine with it.

    python benchmarks/quality_per_cost.py [--tokens-per-parameter 50] [--seeds 3] [--shape micro]
"""

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from experiment import configure, evaluate_at, held_out, prepare, train_once, write_result
from rich.console import Console
from rich.table import Table

from moestro.model.count import active_parameters
from moestro.train.config import RunConfig
from moestro.train.loop import build_stepper
from moestro.train.run import Run

# Small enough that fifty tokens per active parameter are minutes on two cores.
SHAPES: dict[str, dict[str, Any]] = {
    "micro": {
        "model": {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "moe_intermediate_size": 64,
            "intermediate_size": 256,
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
FEWER_EXPERTS = 2.5


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
ALL = (BASELINE, *CONTENDERS)


@dataclass(frozen=True)
class Job:
    """One training run: `horizon` is its length as a share of the dense model's."""

    contender: Contender
    rate: float
    horizon: float
    seed: int


def main() -> None:
    """Tune, train, time, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="micro", choices=list(SHAPES))
    parser.add_argument("--tokens-per-parameter", type=float, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 4e-3, 8e-3, 1.6e-2])
    parser.add_argument("--horizons", nargs="+", type=float, default=[0.25, 0.4, 0.6])
    arguments = parser.parse_args()
    study = Study(arguments.shape, arguments.tokens_per_parameter)
    # Before torch starts in the children: one core is all that a run may take.
    os.environ["OMP_NUM_THREADS"] = "1"
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawned) as pool:
        rows = train_all(pool, arguments)
    seconds = step_seconds(study)
    for row in rows:
        row["seconds"] = row["steps"] * seconds[row["name"]]
    show(rows)
    print(
        write_result(
            "quality_per_cost",
            {"shape": arguments.shape, "step_seconds": seconds, "rows": rows},
        )
    )


def train_all(pool: ProcessPoolExecutor, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Tune every contender on the first seed, then train the best rate's other runs.

    The dense model is tuned on all seeds.
    """
    horizons = {c: arguments.horizons if c is not BASELINE else [1.0] for c in ALL}
    middle = {c: lengths[len(lengths) // 2] for c, lengths in horizons.items()}
    first = [
        Job(c, rate, middle[c], seed)
        for c in ALL
        for rate in arguments.rates
        for seed in range(arguments.seeds if c is BASELINE else 1)
    ]
    rows = list(run_all(pool, first, arguments))
    second = []
    for contender in CONTENDERS:
        best = best_rate(rows, contender.name)[0]["rate"]
        second += [
            Job(contender, best, horizon, seed)
            for horizon in horizons[contender]
            for seed in range(arguments.seeds)
            if (horizon, seed) != (middle[contender], 0)
        ]
    return rows + list(run_all(pool, second, arguments))


def run_all(
    pool: ProcessPoolExecutor, jobs: Sequence[Job], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Run the jobs, as many at once as there are cores, and say each one's result."""
    futures = [
        pool.submit(once, arguments.shape, arguments.tokens_per_parameter, job) for job in jobs
    ]
    for future in futures:
        row = future.result()
        print(row, file=sys.stderr, flush=True)
        yield row


def once(shape: str, tokens_per_parameter: float, job: Job) -> dict[str, Any]:
    """Train once, in a process of its own, and return what it cost and gave."""
    study = Study(shape, tokens_per_parameter)
    steps = max(1, round(study.steps * job.horizon))
    config = study.configure(job.contender, steps, job.rate, job.seed)
    budget = float(MEAN_EXPERTS) if job.contender.is_budget_drawn else None
    outcome = train_once(study.run, config, study.documents, budget=budget)
    point, fewer = outcome.curve[-1], None
    if job.contender.is_budget_drawn and outcome.stepper is not None:
        fewer = evaluate_at(study.run, outcome.stepper, study.documents, FEWER_EXPERTS)
    return {
        "name": job.contender.name,
        "rate": job.rate,
        "horizon": job.horizon,
        "seed": job.seed,
        "steps": steps,
        "tokens": point.tokens,
        "nats_per_token": point.nats_per_token,
        "nats_at_fewer": None if fewer is None else fewer.nats_per_token,
    }


def step_seconds(study: "Study", num_rounds: int = 40) -> dict[str, float]:
    """Return seconds of one step of each contender on all cores: medians, taken in turns."""
    steppers = {}
    for contender in ALL:
        config = study.configure(contender, num_rounds, 4e-3, 0)
        loader = replace(study.run, config=config).loader()
        steppers[contender.name] = build_stepper(config), torch.from_numpy(loader.batch(0))
    taken: dict[str, list[float]] = {name: [] for name in steppers}
    for step in range(num_rounds):
        for name, (stepper, window_BW) in steppers.items():
            start = time.perf_counter()
            stepper.run(step, window_BW)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


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

    def configure(self, contender: Contender, steps: int, rate: float, seed: int) -> RunConfig:
        """Return the settings of one run."""
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
        return configure(self.run, tables, None if contender.is_sparse else MEAN_EXPERTS)


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
    console = Console(width=140)
    console.print(table)
    fixed, drawn = (
        {(row["horizon"], row["seed"]): row for row in best_rate(rows, contender.name)}
        for contender in CONTENDERS[-2:]
    )
    for key, name in (("nats_per_token", MEAN_EXPERTS), ("nats_at_fewer", FEWER_EXPERTS)):
        more = [row[key] - fixed[place]["nats_per_token"] for place, row in drawn.items()]
        console.print(
            f"drawn budgets at {name:g}, less fixed {MEAN_EXPERTS}: {statistics.mean(more):+.4f}"
            f" nats/token, {len(more)} pairs, standard error"
            f" {statistics.stdev(more) / math.sqrt(len(more)):.4f}"
        )


def best_rate(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return a contender's runs at its best learning rate, judged where all rates were tried."""
    own = [row for row in rows if row["name"] == name]
    rates = {row["rate"] for row in own}
    places = {(row["horizon"], row["seed"]) for row in own}
    losses = {(row["rate"], row["horizon"], row["seed"]): row["nats_per_token"] for row in own}
    tried = [place for place in places if all((rate, *place) in losses for rate in rates)]
    best = min(rates, key=lambda rate: sum(losses[rate, *place] for place in tried))
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
