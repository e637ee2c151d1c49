"""Claim: following a grammar takes at most 2 % of the time of a token.

Writes JSON by a schema with a model of random weights, which never wants the token that the schema
wants: the worst case, as each mask is needed. The same streams run without the schema, in turns.
Prints what the grammar's own calls took (masks, guesses, accepting, what is forced), and how much
slower a token of all streams was, at 1 and 8 streams, drawn and greedy.

    python benchmarks/masks.py [--shapes demo small] [--streams 1 8] [--repeats 5] [--tokens 128]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from experiment import said, write_result
from made_model import make_model
from rich.console import Console
from rich.table import Table

from moestro.api.sampling import Sampling
from moestro.engine.config import DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.load import load_engine
from moestro.engine.request import EngineRequest, TokensEvent
from moestro.text.grammar import Grammar, GrammarSpec

P = ParamSpec("P")
R = TypeVar("R")

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "kind": {"enum": ["reader", "writer", "both"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
# So many that no answer is complete before its last token.
SCHEMA = GrammarSpec(
    kind="json_schema",
    source=json.dumps({"type": "array", "items": _PERSON, "minItems": 50}),
)
SAMPLINGS = {"greedy": {"temperature": 0.0}, "drawn": {}, "drawn, top-p 0.9": {"top_p": 0.9}}
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
    parser.add_argument("--shapes", nargs="+", default=["demo", "small"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    watch = Stopwatch()
    for name in ("mask", "offer", "accept", "force"):
        setattr(Grammar, name, watch.time(getattr(Grammar, name)))
    rows = []
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "model")
            with said(f"making a {shape} model"):
                make_model(folder, shape)
            engine = load_engine(folder, CONFIG, (), lambda *_: None)
        for streams in arguments.streams:
            with said(f"{shape}, {streams} streams"):
                rows += measure(engine, watch, shape, streams, arguments)
    show(rows)
    print(write_result("masks", {"arguments": vars(arguments), "rows": rows}))


def measure(
    engine: Engine, watch: Stopwatch, shape: str, streams: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run all samplings with and without the schema, in turns; return a row for each sampling."""
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    # The first round warms up and is left out.
    rounds = product(range(arguments.repeats + 1), SAMPLINGS.items(), (False, True))
    for repeat, (name, settings), is_guided in rounds:
        samplings = [
            Sampling(seed=streams * repeat + stream, ignore_eos=True, **settings)
            for stream in range(streams)
        ]
        times = run(engine, watch, samplings, arguments.tokens, is_guided)
        if repeat:
            found.setdefault((name, is_guided), []).append(times)
    return [
        {
            "shape": shape,
            "streams": streams,
            "sampling": name,
            "token_us": 1e6 * statistics.median(token for token, _ in found[name, False]),
            "guided_token_us": 1e6 * statistics.median(token for token, _ in found[name, True]),
            "grammar_us": 1e6 * statistics.median(calls for _, calls in found[name, True]),
        }
        for name in SAMPLINGS
    ]


def run(
    engine: Engine,
    watch: Stopwatch,
    samplings: list[Sampling],
    num_tokens: int,
    is_guided: bool,
) -> tuple[float, float]:
    """Return the seconds of one token of all streams, and those of them that the grammar took."""
    for stream, sampling in enumerate(samplings):
        request = EngineRequest(
            id=str(stream),
            prompt=(*PROMPT, stream),
            max_tokens=num_tokens,
            sampling=sampling,
            grammar=SCHEMA if is_guided else None,
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
    table = Table(title="What following a JSON schema costs")
    for name in ("shape", "streams", "sampling", "token us", "with schema", "grammar's calls"):
        table.add_column(name, justify="left" if name in {"shape", "sampling"} else "right")
    for row in rows:
        slower = row["guided_token_us"] / row["token_us"] - 1
        share = row["grammar_us"] / row["guided_token_us"]
        table.add_row(
            row["shape"],
            str(row["streams"]),
            row["sampling"],
            f"{row['token_us']:.0f}",
            f"{row['guided_token_us']:.0f} ({slower:+.1%})",
            f"{row['grammar_us']:.1f} ({share:.1%})",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
