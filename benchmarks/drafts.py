"""Claim: drafts from a trained model's own MTP module make greedy answers 1.3 times as fast.

Continues held-out documents of a run greedily, with drafts always, with drafts where the engine
finds that they pay ("auto"), and without, in turns. Prints the share of drafts that was accepted
and the speed beside that without; answers must be the same, token for token.

    python benchmarks/drafts.py runs/demo [--streams 1 8] [--repeats 5] [--tokens 128]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from experiment import said, write_result
from rich.console import Console
from rich.table import Table

from moestro.api.sampling import Sampling
from moestro.engine.config import DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.load import load_engine
from moestro.engine.request import EngineRequest, TokensEvent
from moestro.train.resume import latest_checkpoint
from moestro.train.run import Run, load_run

MODES = ("off", "auto", "always")
_PROMPT_TOKENS = 128


def main() -> None:
    """Measure one run's model, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    checkpoint = latest_checkpoint(run.folder)
    if checkpoint is None:
        sys.exit(f"{run.folder}: holds no checkpoint: train first, as by `make demo`")
    engines = {
        mode: load_engine(
            checkpoint, EngineConfig(draft=DraftConfig(mode=mode)), (), lambda *_: None
        )
        for mode in MODES
    }
    prompts = held_out_prompts(run, max(arguments.streams) * (arguments.repeats + 1))
    rows = []
    for streams in arguments.streams:
        with said(f"{streams} streams"):
            rows += measure(engines, prompts, streams, arguments)
    show(rows)
    shape = {"steps": run.config.train.steps, "preset": run.config.preset}
    print(write_result("drafts", {"run": shape, "tokens": arguments.tokens, "rows": rows}))


def held_out_prompts(run: Run, count: int) -> list[tuple[int, ...]]:
    """Return the beginnings of so many held-out documents, none twice."""
    documents = sorted(run.data.held_out, key=lambda d: d.draw("drafts", 0))
    tokens = (run.tokenizer.encode(document.text) for document in documents)
    prompts = [tuple(ids[:_PROMPT_TOKENS]) for ids in tokens if len(ids) >= _PROMPT_TOKENS]
    if len(prompts) < count:
        sys.exit(f"{len(prompts)} held-out documents are long enough: ask for fewer repeats")
    return prompts[:count]


def measure(
    engines: dict[str, Engine],
    prompts: list[tuple[int, ...]],
    streams: int,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Answer the same prompts in every mode, in turns; return a row for each mode."""
    speeds: dict[str, list[float]] = {mode: [] for mode in MODES}
    drafted, accepted = dict.fromkeys(MODES, 0), dict.fromkeys(MODES, 0)
    # The first round warms up and is left out.
    for repeat in range(arguments.repeats + 1):
        own = prompts[repeat * streams : (repeat + 1) * streams]
        answers = []
        for mode in MODES:
            before = engines[mode].stats()
            tokens, speed = run_once(engines[mode], own, arguments.tokens)
            after = engines[mode].stats()
            answers.append(tokens)
            if repeat:
                speeds[mode].append(speed)
                drafted[mode] += after.draft_tokens - before.draft_tokens
                accepted[mode] += after.accepted_draft_tokens - before.accepted_draft_tokens
        if answers[1:] != answers[:-1]:
            sys.exit("drafts changed an answer: that is a fault, and no figure stands")
    plain = speeds["off"]
    return [
        {
            "streams": streams,
            "mode": mode,
            "tokens_per_s": statistics.median(speeds[mode]),
            "times_without": statistics.median(
                speed / base for speed, base in zip(speeds[mode], plain, strict=True)
            ),
            "accepted": accepted[mode] / drafted[mode] if drafted[mode] else None,
        }
        for mode in MODES
    ]


def run_once(
    engine: Engine, prompts: list[tuple[int, ...]], num_tokens: int
) -> tuple[dict[str, list[int]], float]:
    """Answer all prompts at once; return the answers and tokens/s behind the prompts."""
    for position, prompt in enumerate(prompts):
        sampling = Sampling(temperature=0.0, ignore_eos=True)
        engine.submit(
            EngineRequest(id=str(position), prompt=prompt, max_tokens=num_tokens, sampling=sampling)
        )
    answers: dict[str, list[int]] = {str(position): [] for position in range(len(prompts))}
    while not all(answers.values()):
        collect(engine, answers)
    num_before, start = sum(map(len, answers.values())), time.perf_counter()
    while engine.has_work:
        collect(engine, answers)
    seconds = time.perf_counter() - start
    return answers, (sum(map(len, answers.values())) - num_before) / seconds


def collect(engine: Engine, answers: dict[str, list[int]]) -> None:
    """Advance the engine by a step and add the new tokens to the answers."""
    for event in engine.step():
        if isinstance(event, TokensEvent):
            answers[event.request_id].extend(score.token_id for score in event.scores)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("streams", "drafts", "tokens/s", "to without", "accepted")
    for row in rows:
        accepted = "" if row["accepted"] is None else f"{row['accepted']:.0%}"
        table.add_row(
            str(row["streams"]),
            row["mode"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['times_without']:.2f}x",
            accepted,
        )
    Console().print(table)


if __name__ == "__main__":
    main()
