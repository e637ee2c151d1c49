"""What a peer is asked and answers: one JSON object per line, over standard input and output.

A worker holds one model and answers until its input ends. Standard library only: each peer runs in
an environment of its own. Next: peers.py asks, llama.py and its neighbors answer.

    {"task": "prefill", "tokens": 512, "seed": 3}                 -> {"seconds": ..., "tokens": 512}
    {"task": "decode", "context": 128, "streams": 8, "steps": 32} -> {"seconds": ..., "tokens": 256}

A decode may have `options` that only some peers know.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol

THREADS = 2


@dataclass(frozen=True)
class Decoded:
    """Seconds for `steps` tokens of every stream, the prompts not counted; what was written.

    `distinct_experts`: how many of a layer's experts a step visits, on average, if it was counted.
    """

    seconds: float
    streams: list[list[int]]
    distinct_experts: float | None = None


class Peer(Protocol):
    """One model, loaded."""

    vocab_size: int
    # Whatever a reader needs to repeat it: versions, switches, what was tried.
    about: dict[str, Any]

    def prefill(self, prompt: list[int], **options: Any) -> float:
        """Return the seconds from a prompt that was never seen to the token that follows it."""

    def decode(self, prompts: list[list[int]], steps: int, **options: Any) -> Decoded:
        """Continue all prompts at once, greedily; they come again in the next call."""


def serve(load: Callable[[str], Peer]) -> None:
    """Load the model that the command line names and answer until the input ends."""
    answers = _take_stdout()
    start = time.perf_counter()
    peer = load(sys.argv[1])
    _say(answers, {"load_s": time.perf_counter() - start, "about": peer.about})
    for line in sys.stdin:
        done = answer(peer, json.loads(line))
        _say(answers, done | {"peak_bytes": peak_bytes(), "about": peer.about})


def answer(peer: Peer, wish: dict[str, Any]) -> dict[str, Any]:
    """Do one task."""
    if wish["task"] == "prefill":
        prompt = draw(peer.vocab_size, wish["tokens"], wish["seed"])
        seconds = peer.prefill(prompt, **wish.get("options", {}))
        return {"seconds": seconds, "tokens": len(prompt)}
    prompts = [draw(peer.vocab_size, wish["context"], seed) for seed in range(wish["streams"])]
    done = peer.decode(prompts, wish["steps"], **wish.get("options", {}))
    written = [token for stream in done.streams for token in stream]
    return {
        "seconds": done.seconds,
        # Not what was asked for: a burst may end behind it.
        "tokens": len(written),
        # A model that repeats itself would visit the same experts again and again.
        "distinct_tokens": len(set(written)) / max(len(written), 1),
        "distinct_experts": done.distinct_experts,
        "begins": [stream[:8] for stream in done.streams],
    }


def draw(vocab_size: int, number: int, seed: int) -> list[int]:
    """Return random token ids, the same in every environment; the lowest are special in ours."""
    source = random.Random(f"{seed} of {number}")
    return [source.randrange(16, vocab_size) for _ in range(number)]


def peak_bytes() -> int:
    """Return the most memory that this process ever had, mapped files included."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) * 1024


def _take_stdout() -> IO[str]:
    """Keep standard output for answers; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()
