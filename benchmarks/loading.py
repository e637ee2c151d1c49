"""Claim: a gigabyte of weights is loaded in under 2 s from a warm cache, and held once.

Writes a shape with random weights in bfloat16, int8 and int4, and loads each as a server does, in
a process of its own, in turns, its files read beforehand. Prints seconds on the clock and of the
processor (all threads') a gigabyte, and the peak of memory beside the files' size.

    python benchmarks/loading.py [--preset mid] [--repeats 3] [--folder DIR]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import peer_models
from experiment import said, write_result
from rich.console import Console
from rich.table import Table

KINDS = ("bfloat16", "int8", "int4")
# Runs by itself: prints seconds, seconds of the processor, and the peak of memory in bytes.
LOADER = """
import json, re, sys, time
from pathlib import Path
from moestro.ops.choose import chosen_kernels
from moestro.weights.packed import load_packed
kernels = chosen_kernels().kernels
def memory(name):
    # Not getrusage, whose peak begins with that of the process that started this one.
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = memory("VmRSS")
start, used = time.perf_counter(), time.process_time()
load_packed(Path(sys.argv[1]), kernels)
seconds, used = time.perf_counter() - start, time.process_time() - used
print(json.dumps([seconds, used, memory("VmHWM") - before]))
"""


def main() -> None:
    """Write, load, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mid")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where models are made, and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(arguments.preset, arguments.folder or Path(scratch), arguments.repeats)
    show(rows)
    print(write_result("loading", {"preset": arguments.preset, "rows": rows}))


def measure(preset: str, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Load all kinds in turns; return a row for each."""
    models = {kind: make(preset, kind, folder) for kind in KINDS}
    samples: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _, kind in product(range(repeats), KINDS):
        with said(f"loading {kind}"):
            samples[kind].append(load(models[kind]))
    rows = []
    for kind, model in models.items():
        size = size_of(model)
        seconds, used, peak = (statistics.median(part) for part in zip(*samples[kind], strict=True))
        rows.append(
            {
                "kind": kind,
                "gigabytes": size / 1e9,
                "s_per_gb": 1e9 * seconds / size,
                "best_s_per_gb": 1e9 * min(each[0] for each in samples[kind]) / size,
                "processor_s_per_gb": 1e9 * used / size,
                "peak_over_size": peak / size,
            }
        )
    return rows


def make(preset: str, kind: str, folder: Path) -> Path:
    """Write a model's folder, unless it is there."""
    path = folder / f"{preset}-{kind}"
    if kind == "int8" or kind == "int4":
        peer_models.write_quantized(preset, path, kind)
    else:
        peer_models.write_folder(preset, path)
    return path


def load(model: Path) -> list[float]:
    """Load once in a new process; return seconds, processor seconds, and bytes at the peak."""
    for path in model.glob("*.safetensors"):
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
    told = subprocess.run(
        [sys.executable, "-c", LOADER, model], check=True, capture_output=True, text=True
    )
    found: list[float] = json.loads(told.stdout)
    return found


def size_of(model: Path) -> int:
    """Return the bytes of a folder's weights."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("weights", "GB", "s a GB (asked < 2)", "best", "processor s", "peak over size")
    for row in rows:
        table.add_row(
            row["kind"],
            f"{row['gigabytes']:.2f}",
            f"{row['s_per_gb']:.2f}",
            f"{row['best_s_per_gb']:.2f}",
            f"{row['processor_s_per_gb']:.2f}",
            f"{row['peak_over_size']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
