"""Claim: Python takes under 5 % of a decode step of the demo's model.

Runs streams with a model of random weights and times each step of the engine, and within it the
calls of native code: what is left is Python's (and torch's small operations, which are as little
use). Prints both for each number of streams, per token of a stream.

    python benchmarks/python_share.py [--shape demo] [--streams 1 8] [--repeats 5] [--tokens 256]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiment import said, write_result
from made_model import make_model
from rich.console import Console
from rich.table import Table

from moestro.api.sampling import Sampling
from moestro.engine.config import DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.load import load_engine
from moestro.engine.request import EngineRequest, TokensEvent

CONFIG = EngineConfig(dtype="bfloat16", draft=DraftConfig(mode="off"))
SAMPLINGS = {"greedy": {"temperature": 0.0}, "drawn": {}}
PROMPT = tuple(range(10, 60))


class Timed:
    """A native object whose calls' seconds are summed up."""

    def __init__(self, inner: object) -> None:
        self.seconds = 0.0
        self._inner = inner

    def __getattr__(self, name: str) -> Callable[..., object]:
        function: Callable[..., object] = getattr(self._inner, name)

        def timed(*arguments: object, **named: object) -> object:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        # Found without this function the next time.
        self.__dict__[name] = timed
        return timed


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="demo")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        with said(f"making a {arguments.shape} model"):
            make_model(folder, arguments.shape)
        engine = load_engine(folder, CONFIG, (), lambda *_: None)
    stack = engine.model.stack
    if stack is None:
        raise SystemExit("this machine runs no native kernels")
    watches = [Timed(stack._native), Timed(stack.kernels.library)]
    stack._native, stack.kernels.library = watches
    rows = []
    for streams in arguments.streams:
        for name, settings in SAMPLINGS.items():
            with said(f"{streams} streams, {name}"):
                samples = [
                    run(engine, watches, streams, arguments.tokens, settings)
                    for _ in range(arguments.repeats + 1)
                ]
            # The first round warms up and is left out.
            whole, native = (statistics.median(part) for part in zip(*samples[1:], strict=True))
            rows.append({"streams": streams, "sampling": name, "us": whole, "native_us": native})
    show(rows)
    print(write_result("python_share", {"arguments": vars(arguments), "rows": rows}))


def run(
    engine: Engine, watches: list[Timed], streams: int, num_tokens: int, settings: dict[str, Any]
) -> tuple[float, float]:
    """Return microseconds of steps, and of native calls in them, per token of a stream."""
    for stream in range(streams):
        sampling = Sampling(seed=stream, ignore_eos=True, **settings)
        engine.submit(
            EngineRequest(id=str(stream), prompt=PROMPT, max_tokens=num_tokens, sampling=sampling)
        )
    num_started = 0
    while num_started < streams:
        num_started += len({e.request_id for e in engine.step() if isinstance(e, TokensEvent)})
    for watch in watches:
        watch.seconds = 0.0
    num_left, start = 0, time.perf_counter()
    while engine.has_work:
        num_left += sum(len(e.scores) for e in engine.step() if isinstance(e, TokensEvent))
    seconds = time.perf_counter() - start
    num_each = num_left / streams
    return 1e6 * seconds / num_each, 1e6 * sum(watch.seconds for watch in watches) / num_each


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("streams", "sampling", "us a token", "native", "Python", "share (asked < 5 %)")
    for row in rows:
        left = row["us"] - row["native_us"]
        table.add_row(
            str(row["streams"]),
            row["sampling"],
            f"{row['us']:.0f}",
            f"{row['native_us']:.0f}",
            f"{left:.0f}",
            f"{left / row['us']:.1%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
