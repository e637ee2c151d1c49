"""Claim: the native kernels read weights near memory's speed for few rows, multiply near the peak
for many, and are no slower than torch's own products anywhere.

A linear layer and a layer of experts, in float32 and bfloat16, for 1 to 512 tokens: ours against
torch's `F.linear` and our grouped product on torch. Interleaved, medians, beside the read bandwidth
and the matrix peak of the same minutes. Each repeat draws other tokens, so that experts change.

    python benchmarks/kernels.py [--repeats 7] [--tokens 1 4 8 64 512]

Shapes: T tokens, K slots per token, D width, N outputs, E experts, F expert width.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as nn
from experiment import write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor

from moestro.ops.choose import chosen_kernels
from moestro.ops.grouped import apply_experts, sort_pairs
from moestro.ops.kernels import PackedExperts, Visits
from moestro.ops.machine import measure_flops
from moestro.ops.panels import KINDS, WeightKind, pack, pack_gate_up

LINEAR = (2048, 16384)
# The *mid* shape of the issue that asked for these kernels.
EXPERTS = {"E": 64, "K": 6, "D": 1024, "F": 704}
READ_FLOATS = 64 * 2**20
Run = Callable[[], object]


def main() -> None:
    """Measure every product and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 64, 512])
    arguments = parser.parse_args()
    chosen = chosen_kernels()
    torch.manual_seed(0)
    rows = [
        measure(case, kind, num_tokens, arguments.repeats)
        for kind in ("float32", "bfloat16")
        for case in (Linear(kind), Experts(kind))
        for num_tokens in arguments.tokens
    ]
    print_table(rows, chosen.kernels.name)
    print(write_result("kernels", {"kernels": chosen.kernels.name, "rows": rows}))


class Linear:
    """One matrix, packed and as torch wants it."""

    name = "linear"

    def __init__(self, kind: WeightKind) -> None:
        num_in, num_out = LINEAR
        self.weight_ND = torch.randn(num_out, num_in).to(KINDS[kind])
        self.packed = pack(self.weight_ND[None], kind)

    def runs(self, num_tokens: int) -> tuple[Run, Run]:
        """Return ours and torch's on the same tokens."""
        x_TD = torch.randn(num_tokens, LINEAR[0])
        half_TD = x_TD.to(self.weight_ND.dtype)
        kernels = chosen_kernels().kernels
        return (
            lambda: kernels.multiply(x_TD[:, None], self.packed),
            lambda: nn.linear(half_TD, self.weight_ND),
        )

    def cost(self, num_tokens: int) -> tuple[float, float]:
        """Return bytes of weights read and operations."""
        return self.weight_ND.nbytes, 2.0 * num_tokens * self.weight_ND.numel()


class Experts:
    """One layer of experts."""

    name = "experts"

    def __init__(self, kind: WeightKind) -> None:
        E, D, F = EXPERTS["E"], EXPERTS["D"], EXPERTS["F"]
        dtype = KINDS[kind]
        self.gate_up_EGD = (torch.randn(E, 2 * F, D) / D**0.5).to(dtype)
        self.down_EDF = (torch.randn(E, D, F) / F**0.5).to(dtype)
        self.packed = PackedExperts(pack_gate_up(self.gate_up_EGD, kind), pack(self.down_EDF, kind))

    def runs(self, num_tokens: int) -> tuple[Run, Run]:
        """Return ours and torch's on the same tokens and choices."""
        x_TD, visits = torch.randn(num_tokens, EXPERTS["D"]), self._visits(num_tokens)
        half_TD = x_TD.to(self.down_EDF.dtype)
        kernels = chosen_kernels().kernels
        return (
            lambda: kernels.apply_experts(x_TD, visits, self.packed),
            lambda: self._by_torch(half_TD, visits),
        )

    def cost(self, num_tokens: int) -> tuple[float, float]:
        """Return bytes of weights read by distinct experts, in the mean, and operations."""
        E, K = EXPERTS["E"], EXPERTS["K"]
        per_expert = 3 * EXPERTS["D"] * EXPERTS["F"]
        distinct = E * (1 - (1 - K / E) ** num_tokens)
        return distinct * per_expert * self.down_EDF.itemsize, 2.0 * num_tokens * K * per_expert

    def _visits(self, num_tokens: int) -> Visits:
        E, K = EXPERTS["E"], EXPERTS["K"]
        experts_TK = torch.rand(num_tokens, E).topk(K).indices
        weights_TK = torch.full((num_tokens, K), 1 / K)
        return Visits(experts_TK, weights_TK, torch.ones_like(weights_TK, dtype=torch.bool))

    def _by_torch(self, x_TD: Tensor, visits: Visits) -> Tensor:
        pairs = sort_pairs(visits.experts_TK, visits.is_used_TK, EXPERTS["E"])
        weights_TK = visits.weights_TK.to(x_TD.dtype)
        return apply_experts(x_TD, weights_TK, pairs, self.gate_up_EGD, self.down_EDF)


@torch.inference_mode()
def measure(case: Linear | Experts, kind: str, num_tokens: int, repeats: int) -> dict[str, Any]:
    """Time ours, torch's and the machine's limits in turn."""
    memory = torch.ones(READ_FLOATS)
    names = ("ours", "torch", "read")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks = []
    for _ in range(repeats + 1):
        for name, run in zip(names, (*case.runs(num_tokens), memory.sum), strict=True):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        peaks.append(measure_flops(torch.float32, "cpu"))
    # The first repeat warms up.
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    num_bytes, operations = case.cost(num_tokens)
    read, peak = memory.nbytes / median["read"], statistics.median(peaks[1:])
    return {
        "product": case.name,
        "kind": kind,
        "tokens": num_tokens,
        "seconds": seconds,
        "gb_per_s": {name: num_bytes / median[name] / 1e9 for name in names[:2]},
        "gflops": {name: operations / median[name] / 1e9 for name in names[:2]},
        "share_of_read": num_bytes / median["ours"] / read,
        "share_of_peak": operations / median["ours"] / peak,
        "ours_to_torch": median["torch"] / median["ours"],
        "read_gb_per_s": read / 1e9,
        "peak_gflops": peak / 1e9,
    }


def print_table(rows: list[dict[str, Any]], name: str) -> None:
    """Print a row for each product."""
    table = Table("product", "kind", "tokens", f"{name} GB/s", "of read", "GFLOP/s", "of peak")
    for column in ("torch GB/s", "GFLOP/s", "ours / torch", "read GB/s", "peak GFLOP/s"):
        table.add_column(column)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=140).print(table)


def cells(row: dict[str, Any]) -> Iterator[str]:
    """Yield a row's texts."""
    yield from (row["product"], row["kind"], str(row["tokens"]))
    yield from (f"{row['gb_per_s']['ours']:.1f}", f"{row['share_of_read']:.0%}")
    yield from (f"{row['gflops']['ours']:.0f}", f"{row['share_of_peak']:.0%}")
    yield from (f"{row['gb_per_s']['torch']:.1f}", f"{row['gflops']['torch']:.0f}")
    yield f"{row['ours_to_torch']:.2f}"
    yield from (f"{row['read_gb_per_s']:.1f}", f"{row['peak_gflops']:.0f}")


if __name__ == "__main__":
    main()
