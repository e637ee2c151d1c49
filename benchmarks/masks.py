"""Claim: following a grammar takes at most 2 % of the time of a token.

Writes JSON by a schema with a model of the demo's shape that has learned to, on the spot, and with
models of random weights, which never want the token that the schema wants: the worst case, as each
mask is needed. The same streams run without the schema, in turns. Prints what the grammar's own
calls took (masks, guesses, accepting, what is forced), and how much slower a token of all streams
was, at 1 and 8 streams, drawn and greedy.

    python benchmarks/masks.py [--models trained demo small] [--streams 1 8] [--repeats 5]
        [--tokens 128] [--steps 100]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from experiment import said, write_result
from json_model import SCHEMA, prompt_text, train_json_model
from made_model import make_model
from rich.console import Console
from rich.table import Table

from moestro.api.sampling import Sampling
from moestro.engine.config import DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.load import load_engine
from moestro.engine.request import EngineRequest, TokensEvent
from moestro.text.grammar import Grammar, GrammarSpec
from moestro.text.tokenizer import Tokenizer

P = ParamSpec("P")
R = TypeVar("R")

SAMPLINGS = {"greedy": {"temperature": 0.0}, "drawn": {}, "drawn, top-p 0.9": {"top_p": 0.9}}
GRAMMAR = GrammarSpec(kind="json_schema", source=SCHEMA)
# For random weights.
PROMPT = tuple(range(10, 60))
# An answer with a schema takes no drafts, so the other must not either.
CONFIG = EngineConfig(dtype="bfloat16", draft=DraftConfig(mode="off"))


class Stopwatch:
    """Seconds spent in the grammar's calls since they were last set to 0."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_running = False

    def time(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function as it was, but timed, where no other one is that calls it."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._is_running:
                return function(*args, **kwargs)
            self._is_running, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._is_running = False

        return timed


def main() -> None:
    """Measure each shape, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["trained", "demo", "small"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    watch = Stopwatch()
    for name in ("mask", "offer", "accept", "force"):
        setattr(Grammar, name, watch.time(getattr(Grammar, name)))
    rows = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            engine, prompts = load(name, Path(scratch, "model"), arguments)
        for streams in arguments.streams:
            with said(f"{name}, {streams} streams"):
                found = measure(engine, watch, prompts[:streams], arguments)
                rows += [{"model": name, "streams": streams} | row for row in found]
    show(rows)
    print(write_result("masks", {"arguments": vars(arguments), "rows": rows}))


def load(
    name: str, folder: Path, arguments: argparse.Namespace
) -> tuple[Engine, list[tuple[int, ...]]]:
    """Make a model; return its engine, and a prompt for each stream."""
    numbers = range(max(arguments.streams))
    with said(f"making a model: {name}"):
        if name == "trained":
            folder = train_json_model(folder, arguments.steps)
            encode = Tokenizer.load(folder).encode
            prompts = [tuple(encode(prompt_text(number))) for number in numbers]
        else:
            make_model(folder, name)
            prompts = [(*PROMPT, number) for number in numbers]
    return load_engine(folder, CONFIG, (), lambda *_: None), prompts


def measure(
    engine: Engine,
    watch: Stopwatch,
    prompts: list[tuple[int, ...]],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Run all samplings with and without the schema, in turns; return a row for each sampling."""
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    # The first round warms up and is left out.
    rounds = product(range(arguments.repeats + 1), SAMPLINGS.items(), (False, True))
    for repeat, (name, settings), is_guided in rounds:
        samplings = [
            Sampling(seed=len(prompts) * repeat + stream, ignore_eos=True, **settings)
            for stream in range(len(prompts))
        ]
        times = run(engine, watch, prompts, samplings, arguments.tokens, is_guided)
        if repeat:
            found.setdefault((name, is_guided), []).append(times)
    return [
        {
            "sampling": name,
            "token_us": 1e6 * statistics.median(token for token, _ in found[name, False]),
            "guided_token_us": 1e6 * statistics.median(token for token, _ in found[name, True]),
            "grammar_us": 1e6 * statistics.median(calls for _, calls in found[name, True]),
            "slower": statistics.median(
                guided / token
                for (token, _), (guided, _) in zip(
                    found[name, False], found[name, True], strict=True
                )
            ),
            "share": statistics.median(calls / token for token, calls in found[name, True]),
        }
        for name in SAMPLINGS
    ]


def run(
    engine: Engine,
    watch: Stopwatch,
    prompts: list[tuple[int, ...]],
    samplings: list[Sampling],
    num_tokens: int,
    is_guided: bool,
) -> tuple[float, float]:
    """Return the seconds of one token of all streams, and those of them that the grammar took."""
    for stream, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        request = EngineRequest(
            id=str(stream),
            prompt=prompt,
            max_tokens=num_tokens,
            sampling=sampling,
            grammar=GRAMMAR if is_guided else None,
        )
        engine.submit(request)
    # Prompts, compiling, and each answer's first token are not what is measured.
    started: set[str] = set()
    while len(started) < len(samplings):
        started |= set(writers(engine))
    watch.seconds, num_written, start = 0.0, 0, time.perf_counter()
    while engine.has_work:
        num_written += len(writers(engine))
    each = len(samplings) / num_written
    return (time.perf_counter() - start) * each, watch.seconds * each


def writers(engine: Engine) -> list[str]:
    """Advance the engine by a step; return who got a token, once for each."""
    told = [event for event in engine.step() if isinstance(event, TokensEvent)]
    return [event.request_id for event in told for _ in event.scores]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("model", "streams", "sampling", title="What following a JSON schema costs")
    for name in ("token us", "with schema", "grammar's calls"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["streams"]),
            row["sampling"],
            f"{row['token_us']:.0f}",
            f"{row['guided_token_us']:.0f} ({row['slower'] - 1:+.0%})",
            f"{row['grammar_us']:.1f} ({row['share']:.1%})",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
