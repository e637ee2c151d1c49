"""Claim: the native kernels read weights near memory's speed for few rows, and multiply many rows
faster the fewer bits a weight has.

A linear layer and a layer of experts in all four kinds, for 1 to 512 tokens: ours against torch's
`F.linear` and our grouped product on torch, which have float32 and bfloat16. Interleaved, medians,
beside the read bandwidth and torch's matrix peaks of the same minutes. Each repeat draws other
tokens, so that experts change.

    python benchmarks/kernels.py [--repeats 5] [--tokens 1 8 64 512]

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
from moestro.ops.packing import pack, pack_gate_up
from moestro.ops.panels import KINDS, Panels, WeightKind, empty_panels

KERNEL_KINDS: tuple[WeightKind, ...] = ("float32", "bfloat16", "int8", "int4")
LINEAR = (1024, 16384)
# The *mid* shape of the issue that asked for these kernels.
EXPERTS = {"E": 64, "K": 6, "D": 1024, "F": 704}
READ_FLOATS = 64 * 2**20
Run = Callable[[], object]


def main() -> None:
    """Measure every product and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 512])
    arguments = parser.parse_args()
    chosen = chosen_kernels()
    torch.manual_seed(0)
    rows = [
        measure(case, kind, num_tokens, arguments.repeats)
        for kind in KERNEL_KINDS
        for case in (Linear(kind), Experts(kind))
        for num_tokens in arguments.tokens
    ]
    peaks = {name: measure_flops(dtype, "cpu") / 1e9 for name, dtype in KINDS.items()}
    print_table(rows, chosen.kernels.name)
    print("torch's matrix products:", {name: f"{peak:.0f} GFLOP/s" for name, peak in peaks.items()})
    result = {"kernels": chosen.kernels.name, "torch_peak_gops": peaks, "rows": rows}
    print(write_result("kernels", result))


class Linear:
    """One matrix, packed, and as torch wants it where torch has its kind."""

    name = "linear"

    def __init__(self, kind: WeightKind) -> None:
        num_in, num_out = LINEAR
        weight_ND = torch.randn(num_out, num_in) / num_in**0.5
        self.packed = pack(weight_ND[None], kind, chosen_kernels().kernels)
        self.weight_ND = weight_ND.to(KINDS[kind]) if kind in KINDS else None

    def runs(self, num_tokens: int) -> dict[str, Run]:
        """Return ours and torch's on the same tokens."""
        x_TD, kernels = torch.randn(num_tokens, LINEAR[0]), chosen_kernels().kernels
        runs: dict[str, Run] = {"ours": lambda: kernels.multiply(x_TD[:, None], self.packed)}
        weight_ND = self.weight_ND
        if weight_ND is not None:
            rounded_TD = x_TD.to(weight_ND.dtype)
            runs["torch"] = lambda: nn.linear(rounded_TD, weight_ND)
        return runs

    def cost(self, num_tokens: int) -> tuple[float, float]:
        """Return bytes of weights read and operations."""
        return self.packed.data_HnB.nbytes, 2.0 * num_tokens * LINEAR[0] * LINEAR[1]


class Experts:
    """One layer of experts."""

    name = "experts"

    def __init__(self, kind: WeightKind) -> None:
        E, D, F = EXPERTS["E"], EXPERTS["D"], EXPERTS["F"]
        # All experts are alike: quantizing each by itself would take longer than the rest.
        gate_up_1GD, down_1DF = torch.randn(1, 2 * F, D) / D**0.5, torch.randn(1, D, F) / F**0.5
        kernels = chosen_kernels().kernels
        self.packed = PackedExperts(
            _repeat(pack_gate_up(gate_up_1GD, kind, kernels), empty_panels(kind, E, (F, D), True)),
            _repeat(pack(down_1DF, kind, kernels), empty_panels(kind, E, (D, F))),
        )
        plain = (gate_up_1GD, down_1DF) if kind in KINDS else ()
        self.plain = [each.to(KINDS[kind]).repeat(E, 1, 1) for each in plain]

    def runs(self, num_tokens: int) -> dict[str, Run]:
        """Return ours and torch's on the same tokens and choices."""
        x_TD, visits = torch.randn(num_tokens, EXPERTS["D"]), self._visits(num_tokens)
        kernels = chosen_kernels().kernels
        runs: dict[str, Run] = {"ours": lambda: kernels.apply_experts(x_TD, visits, self.packed)}
        if self.plain:
            rounded_TD = x_TD.to(self.plain[0].dtype)
            runs["torch"] = lambda: self._by_torch(rounded_TD, visits)
        return runs

    def cost(self, num_tokens: int) -> tuple[float, float]:
        """Return bytes of weights read by distinct experts, in the mean, and operations."""
        E, K = EXPERTS["E"], EXPERTS["K"]
        panels: tuple[Panels, ...] = (self.packed.gate_up, self.packed.down)
        share_read = 1 - (1 - K / E) ** num_tokens
        operations = 2.0 * num_tokens * K * 3 * EXPERTS["D"] * EXPERTS["F"]
        return share_read * sum(each.data_HnB.nbytes for each in panels), operations

    def _visits(self, num_tokens: int) -> Visits:
        E, K = EXPERTS["E"], EXPERTS["K"]
        experts_TK = torch.rand(num_tokens, E).topk(K).indices
        weights_TK = torch.full((num_tokens, K), 1 / K)
        return Visits(experts_TK, weights_TK, torch.ones_like(weights_TK, dtype=torch.bool))

    def _by_torch(self, x_TD: Tensor, visits: Visits) -> Tensor:
        pairs = sort_pairs(visits.experts_TK, visits.is_used_TK, EXPERTS["E"])
        weights_TK = visits.weights_TK.to(x_TD.dtype)
        return apply_experts(x_TD, weights_TK, pairs, self.plain[0], self.plain[1])


def _repeat(one: Panels, room: Panels) -> Panels:
    room.data_HnB.copy_(one.data_HnB)
    return room


@torch.inference_mode()
def measure(case: Linear | Experts, kind: str, num_tokens: int, repeats: int) -> dict[str, Any]:
    """Time ours, torch's and a read of memory in turn."""
    memory = torch.ones(READ_FLOATS)
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for name, run in (case.runs(num_tokens) | {"read": memory.sum}).items():
            start = time.perf_counter()
            run()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    # The first repeat warms up.
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    num_bytes, operations = case.cost(num_tokens)
    read = memory.nbytes / median.pop("read")
    return {
        "product": case.name,
        "kind": kind,
        "tokens": num_tokens,
        "seconds": seconds,
        "gb_per_s": {name: num_bytes / each / 1e9 for name, each in median.items()},
        "gops": {name: operations / each / 1e9 for name, each in median.items()},
        "share_of_read": num_bytes / median["ours"] / read,
        "ours_to_torch": median["torch"] / median["ours"] if "torch" in median else None,
        "read_gb_per_s": read / 1e9,
    }


def print_table(rows: list[dict[str, Any]], name: str) -> None:
    """Print a row for each product."""
    table = Table("product", "kind", "tokens", f"{name} GB/s", "of read", "read GB/s", "GOP/s")
    for column in ("torch GOP/s", "ours / torch"):
        table.add_column(column)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=120).print(table)


def cells(row: dict[str, Any]) -> Iterator[str]:
    """Yield a row's texts."""
    yield from (row["product"], row["kind"], str(row["tokens"]))
    yield from (f"{row['gb_per_s']['ours']:.1f}", f"{row['share_of_read']:.0%}")
    yield from (f"{row['read_gb_per_s']:.1f}", f"{row['gops']['ours']:.0f}")
    has_torch = row["ours_to_torch"] is not None
    yield f"{row['gops']['torch']:.0f}" if has_torch else "-"
    yield f"{row['ours_to_torch']:.2f}" if has_torch else "-"


if __name__ == "__main__":
    main()
