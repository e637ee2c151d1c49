"""Both levels on one laptop: two models, sparse and dense, and a policy that picks between them.

    python examples/two_level.py --out runs/two-level

Trains both models on this machine's own Python library, serves them behind one address, records how
well each goes on with code that neither was trained on, learns from that which of them a request
needs, chooses the threshold that keeps 95 % of the larger one's quality, and then asks for the
model `auto` with requests that played no part in this. About ten minutes on two cores, no network.
Models that are trained already are kept.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODELS = {"small": CONFIGS / "small-dense.toml", "large": CONFIGS / "demo.toml"}
# Models so small are far apart: at 0.95 the small one would get 3 % of the requests.
FLOOR = 0.8
MAX_TOKENS = 4
PROMPT_CHARS = 600
TRUTH_CHARS = 4
CONCURRENCY = 8
PATIENCE_S = 600.0
NEVER_KEPT = -100.0


@dataclass(frozen=True)
class Question:
    """Code up to a place inside a line, and how that line goes on."""

    prompt: str
    truth: str


@dataclass(frozen=True)
class Answer:
    """What came back: its score, the compute it took, who answered and why."""

    score: float
    cost: float
    model: str
    reason: str
    logprobs: list[float]


def main() -> None:
    """Train, serve, record, learn, calibrate, ask, and say what it was worth."""
    options = read_options()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        train(name, out, options.steps)
    prices = {name: active_parameters(out / name) for name in MODELS}
    write_fleet(out, prices)
    questions = draw_questions(out / "large/data/held_out.jsonl", options.questions)
    # A third to learn from, half to calibrate on: a promise takes more rows than a guess.
    num_fit, num_known = len(questions) // 3, len(questions) * 5 // 6
    with serving(out) as (server, url):
        wait_for(url, "large")
        wait_for(url, "small")
        recorded = {name: ask_all(url, name, questions, prices) for name in MODELS}
        learn_policy(out, questions[:num_known], recorded, num_fit)
        write_fleet(out, prices, policy=out / "policy")
        server.send_signal(signal.SIGHUP)
        wait_for(url, "auto")
        auto = ask_all(url, "auto", questions[num_known:], prices)
    unseen = {name: answers[num_known:] for name, answers in recorded.items()}
    print_table(unseen["small"], unseen["large"], auto)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/two-level"), help="where all goes")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each model")
    parser.add_argument("--questions", type=int, default=4800, help="how many places in code")
    return parser.parse_args()


def moestro(*arguments: object) -> list[str]:
    """Return a command as a user types it, for this Python."""
    return [sys.executable, "-m", "moestro", *map(str, arguments)]


def train(name: str, out: Path, steps: int) -> None:
    """Train a model, unless its run is there and finished: the report is written last."""
    if (out / name / "report.html").exists():
        print(f"{name}: trained already")
        return
    command = moestro("train", MODELS[name], "--out", out / name, "--set", f"train.steps={steps}")
    subprocess.run(command, check=True)


def active_parameters(run: Path) -> int:
    """Return how many parameters take part in a token: what the answer's compute is counted in."""
    found = subprocess.run(
        moestro("inspect", run, "--json"), check=True, capture_output=True, text=True
    )
    # By number of experts; a request that does not ask for fewer gets the most.
    counts: dict[str, int] = json.loads(found.stdout)["active_parameters"]
    return max(counts.values())


def write_fleet(out: Path, prices: dict[str, int], policy: Path | None = None) -> None:
    """Write the fleet; a price is a model's active parameters, so that a cost is compute."""
    models = [
        {
            "name": name,
            "path": str(out / name),
            "price": {"input_usd_per_mtok": price / 1e6, "output_usd_per_mtok": price / 1e6},
        }
        for name, price in prices.items()
    ]
    fleet: dict[str, Any] = {
        "models": models,
        "records": {"url": f"sqlite:///{out / 'records.db'}"},
    }
    if policy is not None:
        fleet["policy"] = {"path": str(policy)}
    (out / "fleet.toml").write_text(tomli_w.dumps(fleet))


def draw_questions(held_out: Path, number: int) -> list[Question]:
    """Draw beginnings of words inside lines of code never trained on, each line at most once."""
    documents = [json.loads(line)["text"] for line in held_out.read_text().splitlines()]
    draw = random.Random(0)
    found = []
    for text in documents:
        for line in re.finditer(r"[^\n]*\S[^\n]{23,}", text):
            words = re.compile(r" ?\b\w").finditer(text, line.start() + 8, line.end() - 8)
            places = [word.start() for word in words]
            if not places:
                continue
            place = draw.choice(places)
            prompt, truth = text[:place], text[place : line.end()][:TRUTH_CHARS]
            if len(prompt) >= PROMPT_CHARS and truth.strip():
                found.append(Question(prompt[-PROMPT_CHARS:], truth))
    draw.shuffle(found)
    return found[:number]


@contextmanager
def serving(out: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Serve the fleet on a free port until the caller is done; give its process and address."""
    log = out / "server.log"
    command = moestro("serve", out / "fleet.toml", "--port", 0)
    with log.open("wb") as written, subprocess.Popen(command, stderr=written) as server:
        try:
            url = find_address(server, log)
            print(f"serving at {url}")
            yield server, url
        finally:
            server.terminate()


def find_address(server: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait until the server says where it is."""
    end = time.monotonic() + PATIENCE_S
    while not (at := re.search(r"at (http://\S+)/v1", log.read_text())):
        if server.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the fleet does not start: see {log}")
        time.sleep(0.1)
    return at[1]


def wait_for(url: str, model: str) -> None:
    """Wait until a model answers."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            complete(url, model, "import os")
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > end:
                raise SystemExit(f"{model} does not answer: see server.log") from None
            time.sleep(0.2)


def complete(url: str, model: str, prompt: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Ask for a completion; return the body and the headers."""
    asked = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS}
    asked |= {"temperature": 0, "logprobs": 1}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        headers = {name.lower(): value for name, value in reply.headers.items()}
        return json.load(reply), headers


def ask_all(
    url: str, model: str, questions: Sequence[Question], prices: dict[str, int]
) -> list[Answer]:
    """Ask a model everything, several requests at a time."""
    began = time.monotonic()

    def ask(question: Question) -> Answer:
        body, headers = complete(url, model, question.prompt)
        choice, name = body["choices"][0], headers["x-moestro-model"]
        return Answer(
            score=shared_start(choice["text"], question.truth) / len(question.truth),
            cost=body["usage"]["total_tokens"] * prices[name] / 1e6,
            model=name,
            reason=headers["x-moestro-reason"],
            # An answer without a token has none.
            logprobs=(choice["logprobs"] or {}).get("token_logprobs", []),
        )

    with ThreadPoolExecutor(CONCURRENCY) as threads:
        answers = list(threads.map(ask, questions))
    print(f"{model}: {len(answers)} answers in {time.monotonic() - began:.0f} s")
    return answers


def shared_start(text: str, truth: str) -> int:
    """Count the characters that both begin with."""
    pairs = enumerate(zip(text, truth, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(text), len(truth)))


def learn_policy(
    out: Path, questions: Sequence[Question], recorded: dict[str, list[Answer]], num_fit: int
) -> None:
    """Fit on the first questions, choose the threshold on the others."""
    parts = {"fit": range(num_fit), "calibration": range(num_fit, len(questions))}
    for name, rows in parts.items():
        lines = [json.dumps(outcome(questions[row], recorded, row)) for row in rows]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    pair = ("--weak", "small", "--strong", "large")
    subprocess.run(
        moestro("policy", "fit", out / "fit.jsonl", *pair, "--out", out / "policy"), check=True
    )
    calibration = (out / "policy", out / "calibration.jsonl", "--floor", FLOOR)
    subprocess.run(moestro("policy", "calibrate", *calibration), check=True)


def outcome(question: Question, recorded: dict[str, list[Answer]], row: int) -> dict[str, Any]:
    """Return a line of outcomes as `moestro policy` reads them."""
    answers = {name: answers[row] for name, answers in recorded.items()}
    return {
        "prompt": question.prompt,
        "scores": {name: answer.score for name, answer in answers.items()},
        "costs": {name: answer.cost for name, answer in answers.items()},
        # Nothing speaks for an answer without a token, so that a cascade never keeps it.
        "logprobs": {name: answer.logprobs or [NEVER_KEPT] for name, answer in answers.items()},
    }


def print_table(small: list[Answer], large: list[Answer], auto: list[Answer]) -> None:
    """Print quality, quality kept, share of small answers and compute saved, of unseen requests."""
    print(f"\n{len(auto)} requests that neither the fit nor the calibration saw\n")
    print("model    quality   of large's (95 % interval)   by small   compute saved")
    for name, answers in (("small", small), ("large", large), ("auto", auto)):
        kept, low, high = share_kept(answers, large)
        by_small = np.mean([answer.model == "small" for answer in answers])
        saved = 1 - sum(map(compute, answers, small)) / sum(answer.cost for answer in large)
        quality = np.mean([answer.score for answer in answers])
        print(
            f"{name:<8} {quality:7.3f}   {kept:6.1%} ({low:.1%} to {high:.1%})".ljust(48)
            + f"{by_small:8.1%} {saved:15.1%}"
        )


def share_kept(answers: list[Answer], large: list[Answer]) -> tuple[float, float, float]:
    """Return the share of the large model's quality, and its interval over requests drawn anew."""
    scores_2N = np.array([[a.score for a in answers], [a.score for a in large]])
    draw = np.random.default_rng(0)
    drawn = [draw.integers(scores_2N.shape[1], size=scores_2N.shape[1]) for _ in range(2000)]
    sums_2D = np.array([scores_2N[:, places].sum(1) for places in drawn]).T
    low, high = np.percentile(sums_2D[0] / sums_2D[1], [2.5, 97.5])
    kept, whole = scores_2N.sum(1)
    return float(kept / whole), float(low), float(high)


def compute(answer: Answer, small: Answer) -> float:
    """Return what an answer took; a cascade that went on to the large model paid for both."""
    is_second = answer.reason.startswith("cascade: not sure") and answer.model == "large"
    return answer.cost + (small.cost if is_second else 0.0)


if __name__ == "__main__":
    main()
