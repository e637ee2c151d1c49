"""Claim: Moestro serves many streams faster than transformers, and a long prompt stalls nobody.

Makes a model with random weights, serves it with `moestro serve`, `transformers serve` and the
server of llama-cpp-python, and puts the same load on all, in turns; prints throughput, time to
first token and time between tokens at 1 to 32 streams, what a 2,048-token prompt does to streams
under way, what the server adds to the engine's own time to first token, what batch invariance
costs, and memory over many requests.

    python benchmarks/serve.py [--shape small] [--streams 1 4 8 16 32] [--repeats 3] [--soak 10000]
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import IO, Any

import httpx
from experiment import said, write_result
from made_model import make_model
from rich.console import Console
from rich.table import Table
from traffic import Load, closed_loop, disturbed, first_token_seconds, medians, open_loop

SECONDS_TO_START = 300
PEERS = Path(__file__).parents[1] / ".venv-peers"


def main() -> None:
    """Serve, load, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--soak", type=int, default=0, help="requests to watch memory over")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--without-peer", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        with said(f"making a {arguments.shape} model"):
            make_model(folder, arguments.shape)
        results = compare(folder, arguments)
        results["disturbed"] = measure_stall(folder, arguments)
        results["overhead"] = measure_overhead(folder, arguments)
        if arguments.soak:
            results["soak"] = measure_soak(folder, arguments)
    show(results)
    print(write_result("serve", {"arguments": vars(arguments)} | results))


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run closed loops on all servers in turns, then an open loop on ours."""
    dtype = arguments.dtype
    commands = {
        "moestro": ours(folder, dtype),
        "moestro, not batch invariant": ours(folder, dtype, "engine.is_batch_invariant=false"),
    }
    if not arguments.without_peer:
        commands |= peers(folder, dtype)
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for repeat, (name, command) in product(range(arguments.repeats), commands.items()):
        with said(f"{name}, repeat {repeat}"), serve(command) as url:
            for streams in arguments.streams:
                load = load_for(name, url, folder, arguments)
                figures = closed_loop(load, streams, 2, seed=100_000 * repeat + streams)
                runs.setdefault((name, streams), []).append(figures)
    rows = [
        {"server": name, "streams": streams} | medians(found)
        for (name, streams), found in runs.items()
    ]
    busiest = max(row["tokens_per_s"] for row in rows if row["server"] == "moestro")
    rate = 0.7 * busiest / arguments.max_tokens
    with said(f"open loop, {rate:.2f} requests/s"), serve(commands["moestro"]) as url:
        load = load_for("moestro", url, folder, arguments)
        open_figures = open_loop(load, rate, 40) | {"requests_per_s": rate}
    return {"closed": rows, "open": open_figures}


def measure_stall(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the gaps between 4 streams' tokens before and while a 2,048-token prompt comes."""
    runs = []
    for repeat in range(arguments.repeats):
        with said(f"a long prompt, repeat {repeat}"), serve(ours(folder, arguments.dtype)) as url:
            name = folder.name
            extra = {"ignore_eos": True}
            # So long that they are under way when the prompt comes, however fast the server.
            streams = Load(url, name, arguments.prompt_words, 1500, extra)
            intruder = Load(url, name, 2040, 1, extra)
            closed_loop(Load(url, name, 50, 32, extra), 4, 1, seed=7)
            runs.append(disturbed(streams, 4, intruder, seed=repeat))
    return medians(runs)


def measure_overhead(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the client's mean time to first token beside the engine's for the same requests."""
    with said("overhead"), serve(ours(folder, arguments.dtype)) as url:
        load = load_for("moestro", url, folder, arguments)
        closed_loop(load, 1, 3, seed=5)
        before = engine_seconds(url)
        client_s = first_token_seconds(load, number=60, seed=900)
        after = engine_seconds(url)
    num = after[1] - before[1]
    engine_s = (after[0] - before[0]) / num
    return {"client_first_s": client_s, "engine_first_s": engine_s, "added_s": client_s - engine_s}


def engine_seconds(url: str) -> tuple[float, float]:
    """Return the engine's seconds of queue and prefill over all requests, and their number."""
    seconds, number = 0.0, 0.0
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        for name in ("request_queue_time_seconds", "request_prefill_time_seconds"):
            if line.startswith(f"moestro:{name}_sum"):
                seconds += float(line.split()[-1])
        if line.startswith("moestro:request_queue_time_seconds_count"):
            number += float(line.split()[-1])
    return seconds, number


def measure_soak(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the memory of server and engine after a tenth of the requests and after all."""
    number = arguments.soak
    with said(f"{number} requests"), serve(ours(folder, arguments.dtype)) as url:
        pid = SERVED[-1]
        load = Load(url, folder.name, 12, 4, {"ignore_eos": True})
        closed_loop(load, 8, number // 80, seed=1)
        early = memory_bytes(pid)
        closed_loop(load, 8, (number - number // 10) // 8, seed=2)
        late = memory_bytes(pid)
    return {"early_bytes": early, "late_bytes": late, "growth": late / early - 1}


SERVED: list[int] = []


@contextlib.contextmanager
def serve(command: list[str]) -> Iterator[str]:
    """Run a server on a free port until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
    SERVED.append(process.pid)
    url = f"http://127.0.0.1:{port}"
    try:
        wait(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def wait(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Wait until a server answers that it is ready."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            # The peers have no /ready; transformers has /health, llama-cpp-python only its models.
            paths = ("/ready", "/health", "/v1/models")
            ready, *others = (httpx.get(url + path, timeout=5).status_code for path in paths)
            if ready == 200 or (ready == 404 and 200 in others):
                return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    log.seek(0)
    sys.exit(f"the server did not start: {log.read()[-2000:].decode(errors='replace')}")


def ours(folder: Path, dtype: str, *settings: str) -> list[str]:
    """Return the command that serves with Moestro."""
    sets = [f"--set={setting}" for setting in (f"engine.dtype={dtype}", *settings)]
    return [sys.executable, "-m", "moestro", "serve", str(folder), *sets]


def peers(folder: Path, dtype: str) -> dict[str, list[str]]:
    """Return the commands that serve with transformers, and with llama.cpp where it is."""
    program = Path(sys.executable).with_name("transformers")
    # Its continuous batching (5.23) fails on keys that are wider than its cache expects.
    options = ["--device", "cpu", "--dtype", dtype]
    commands = {"transformers": [str(program), "serve", str(folder), *options]}
    python = PEERS / "bin/python"
    if not python.exists():
        print("llama-cpp-python: absent (make .venv-peers/.installed)", file=sys.stderr)
        return commands
    file = folder.with_suffix(".gguf")
    convert = [sys.executable, "-m", "moestro", "convert", str(folder), str(file)]
    subprocess.run([*convert, "--to", "gguf", "--dtype", dtype], check=True, capture_output=True)
    threads = str(os.cpu_count())
    options = ["--n_threads", threads, "--n_threads_batch", threads, "--n_ctx", "4096"]
    # Else a request ends the one before it.
    options += ["--interrupt_requests", "false"]
    serve = ["-m", "llama_cpp.server", "--host", "127.0.0.1", "--model", str(file)]
    return commands | {"llama-cpp-python": [str(python), *serve, *options]}


def load_for(name: str, url: str, folder: Path, arguments: argparse.Namespace) -> Load:
    """Return the load, with the name that a server knows the model by."""
    is_ours = name.startswith("moestro")
    model = folder.name if is_ours else str(folder)
    extra = {"ignore_eos": True} if is_ours else {}
    return Load(url, model, arguments.prompt_words, arguments.max_tokens, extra)


def memory_bytes(pid: int) -> float:
    """Return the resident memory of a process and its children."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text().rsplit(") ", 1)[1].split()
            if pid in (int(folder.name), int(fields[1])):
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return float(total)


def show(results: dict[str, Any]) -> None:
    """Print one table and the single figures."""
    table = Table(title="closed loop, medians; milliseconds: median / 95th / 99th")
    for column in ("server", "streams", "tokens/s", "first token", "between tokens"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for row in sorted(results["closed"], key=lambda row: (row["streams"], row["server"])):
        cells = [row["server"], str(row["streams"]), f"{row['tokens_per_s']:.1f}"]
        for name in ("first", "gap"):
            values = [row[f"{name}_p{share}_s"] * 1000 for share in (50, 95, 99)]
            cells.append(" / ".join(f"{value:.0f}" for value in values))
        table.add_row(*cells)
    console = Console(width=110)
    console.print(table)
    for name in ("open", "disturbed", "overhead", "soak"):
        if name in results:
            console.print(name, {key: round(value, 4) for key, value in results[name].items()})


if __name__ == "__main__":
    main()
