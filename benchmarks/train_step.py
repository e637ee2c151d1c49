"""Claim: a sparse training step costs little more than a dense one, and much less than
transformers' own.

Tokens per second of one whole step (forward, backward, clip, AdamW) of (a) our sparse model, (b)
our dense model of equal active size, (c) transformers' DeepseekV3ForCausalLM on (a)'s weights with
its fastest experts setting, as it comes and in a process that keeps freed memory as `moestro train`
does. (a) and (b) in the dtype that `moestro train` would choose here, (c) in the one that torch
multiplies fastest, whose peak is the yardstick. Each in a process of its own, interleaved, medians,
with that peak measured in between. In its turn each takes two steps and the second counts: in
training a step follows a step, and finds the caches that it left, not another process's. MTP and
budgets are off, because (c) has neither; every token takes all 4 routed experts.

    python benchmarks/train_step.py [--repeats 5] [--sizes demo small]
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from experiment import write_result
from rich.console import Console
from rich.table import Table

from moestro import settings
from moestro.model.config import ModelConfig
from moestro.model.count import training_flops_per_token
from moestro.model.initialize import initialize
from moestro.model.model import Transformer
from moestro.model.presets import dense_twin, preset_tables
from moestro.ops.machine import fastest_dtype, measure_flops
from moestro.ops.memory import keep_freed_memory
from moestro.train.config import OptimizerConfig, TrainConfig, build_run_config
from moestro.train.run import settle_machine
from moestro.train.step import Stepper
from moestro.weights.export import save_model

SHAPES = {"demo": (16, 256), "small": (8, 256)}
CONTESTANTS = ("ours", "dense", "transformers", "transformers keeping")
WARM_UP = 3
Step = Callable[[], None]


def main() -> None:
    """Measure every size and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    arguments = parser.parse_args()
    rows = [measure(size, arguments.repeats) for size in arguments.sizes]
    columns = ("ours tokens/s", "dense", "transformers", "... keeping memory", "a/b (>= 0.83)")
    table = Table("size", *columns, "a/c (>= 2.4)", "keeping", "share of peak (>= 45 %)")
    for row in rows:
        table.add_row(
            row["size"],
            *(f"{row['tokens_per_s'][name]:,.0f}" for name in CONTESTANTS),
            f"{row['ours_to_dense']:.2f}",
            f"{row['ours_to_transformers']:.2f}",
            f"{row['ours_to_transformers_keeping']:.2f}",
            f"{row['share_of_peak']:.0%} of {row['peak_gflops']:.0f} GFLOP/s {row['peak_dtype']}",
        )
    Console(width=160).print(table)
    print(write_result("train_step", {"sizes": rows}))


def measure(size: str, repeats: int) -> dict[str, Any]:
    """Let the contestants take a step in turn, each in a process of its own."""
    batch_size, seq_len = SHAPES[size]
    config = shape(size)
    own, fastest = own_dtype(size), fastest_dtype("cpu")
    with contestants(size, own, fastest) as peers:
        for _ in range(WARM_UP):
            take_turns(peers)
        rounds = [(take_turns(peers), measure_flops(fastest, "cpu")) for _ in range(repeats)]
    times = {name: [seconds[name] for seconds, _ in rounds] for name in CONTESTANTS}
    tokens = batch_size * seq_len
    medians = {name: statistics.median(values) for name, values in times.items()}
    peak = statistics.median(peak for _, peak in rounds)
    flops = training_flops_per_token(config, seq_len, config.num_experts_per_tok) * tokens
    return {
        "size": size,
        "dtype": str(own).removeprefix("torch."),
        "peak_dtype": str(fastest).removeprefix("torch."),
        "batch": [batch_size, seq_len],
        "tokens_per_s": {name: tokens / seconds for name, seconds in medians.items()},
        "seconds": times,
        "ours_to_dense": medians["dense"] / medians["ours"],
        "ours_to_transformers": medians["transformers"] / medians["ours"],
        "ours_to_transformers_keeping": medians["transformers keeping"] / medians["ours"],
        "share_of_peak": flops / medians["ours"] / peak,
        "peak_gflops": peak / 1e9,
    }


def take_turns(peers: Mapping[str, Connection]) -> dict[str, float]:
    """Ask each for one step and return its seconds."""
    seconds = {}
    for name, peer in peers.items():
        peer.send(None)
        seconds[name] = peer.recv()
    return seconds


def shape(size: str) -> ModelConfig:
    """Return a preset without what transformers' model lacks."""
    return dataclasses.replace(
        settings.build(ModelConfig, preset_tables(size)),
        num_nextn_predict_layers=0,
        min_experts_per_tok=None,
    )


def own_dtype(size: str) -> torch.dtype:
    """Return what `moestro train` would choose here for this size."""
    tables = {"data": {}, "model": preset_tables(size), "train": {"seq_len": SHAPES[size][1]}}
    dtype: torch.dtype = getattr(torch, settle_machine(build_run_config(tables)).train.dtype)
    return dtype


@contextmanager
def contestants(
    size: str, own: torch.dtype, fastest: torch.dtype
) -> Iterator[dict[str, Connection]]:
    """Start one process for each and lend the pipes that ask for a step and tell its seconds."""
    spawn = get_context("spawn")
    peers, processes = {}, []
    for name in CONTESTANTS:
        peers[name], far_end = spawn.Pipe()
        dtype = own if name in ("ours", "dense") else fastest
        processes.append(spawn.Process(target=serve, args=(name, size, dtype, far_end)))
        processes[-1].start()
    try:
        yield peers
    finally:
        for process in processes:
            process.kill()
            process.join()


def serve(name: str, size: str, dtype: torch.dtype, caller: Connection) -> None:
    """Take two steps whenever asked, and tell the second's seconds."""
    batch_size, seq_len = SHAPES[size]
    config = shape(size)
    if name != "transformers":
        keep_freed_memory()
    if name == "dense":
        config = dense_twin(config, config.num_experts_per_tok)
    stepper = build(config, batch_size, seq_len, dtype)
    if name in ("ours", "dense"):
        step = own_step(stepper, batch_size, seq_len)
    else:
        step = reference_step(stepper.model, batch_size, seq_len, dtype)
    while True:
        caller.recv()
        step()
        start = time.perf_counter()
        step()
        caller.send(time.perf_counter() - start)


def build(config: ModelConfig, batch_size: int, seq_len: int, dtype: torch.dtype) -> Stepper:
    """Make one of our models in training."""
    model = Transformer(config, compute_dtype=dtype)
    initialize(model, seed=0)
    train = TrainConfig(
        batch_size=batch_size,
        seq_len=seq_len,
        is_budget_drawn=False,
        optimizer=OptimizerConfig(kind="adamw"),
    )
    return Stepper(model, train)


def own_step(stepper: Stepper, batch_size: int, seq_len: int) -> Step:
    """Return our step on random tokens."""
    window_BW = torch.randint(stepper.model.config.vocab_size, (batch_size, seq_len + 1))
    numbers = iter(range(1_000_000))
    return lambda: void(stepper.run(next(numbers), window_BW))


def reference_step(model: Transformer, batch_size: int, seq_len: int, dtype: torch.dtype) -> Step:
    """Return the same step of transformers' model on the same weights."""
    from transformers import DeepseekV3ForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        twin = DeepseekV3ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="grouped_mm"
        )
    twin.train()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4, fused=True)
    tokens_BS = torch.randint(model.config.vocab_size, (batch_size, seq_len))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = twin(input_ids=tokens_BS, labels=tokens_BS, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def void(value: object) -> None:
    """Drop a value, so that a lambda returns nothing."""


if __name__ == "__main__":
    main()
