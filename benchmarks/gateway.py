"""Claim: Moestro's gateway adds at most 5 ms (p99) and passes on 1,000 requests/s, 20,000 chunks/s.

A mock backend (nginx for whole answers, a small server for streams) is asked directly, through a
bare nginx, through Moestro with 1 and 2 workers, and through LiteLLM's proxy if `.venv-litellm` is
there; in turns, medians over repeats. All access logs go to the null device.

    python benchmarks/gateway.py [--repeats 3] [--seconds 2] [--soak 100000]
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiment import write_result
from gateway_load import at_rate, closed, closed_for, streams
from rich.console import Console
from rich.table import Table

LITELLM = Path(".venv-litellm/bin/litellm")
CLIENTS, RATE, NUM_CHUNKS = 16, 1000, 500
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "mock",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}
Contestants = dict[str, tuple[int, int, "subprocess.Popen[bytes] | None"]]


def main() -> None:
    """Start all, load them in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument("--soak", type=int, default=0, help="requests to watch memory over")
    parser.add_argument("--without-litellm", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        contestants = start(Path(scratch), stack, arguments)
        results = compare(contestants, arguments)
        show(results)
        soaked = soak(contestants["moestro"], arguments.soak) if arguments.soak else None
    absent = [] if "litellm" in results else ["litellm"]
    payload = {"arguments": vars(arguments), "results": results, "absent": absent, "soak": soaked}
    print(write_result("gateway", payload))


def start(scratch: Path, stack: contextlib.ExitStack, arguments: argparse.Namespace) -> Contestants:
    """Start the mocks and everything between; a contestant has a port for whole and for streams."""
    whole, stream, bare_whole, bare_stream = (free_port() for _ in range(4))
    text = nginx_text(scratch, whole, bare_whole, bare_stream, stream)
    Path(scratch, "nginx.conf").write_text(text)
    stack.enter_context(running(["nginx", "-c", f"{scratch}/nginx.conf"], whole))
    mock = [sys.executable, "benchmarks/gateway_mock.py", str(stream), str(NUM_CHUNKS)]
    stack.enter_context(running(mock, stream))
    found: Contestants = {
        "direct": (whole, stream, None),
        "nginx": (bare_whole, bare_stream, None),
    }
    for name, workers in (("moestro", 1), ("moestro, 2 workers", 2)):
        ports, processes = [], []
        for backend in (whole, stream):
            port = free_port()
            command = moestro(scratch, port, backend, workers)
            processes.append(stack.enter_context(running(command, port)))
            ports.append(port)
        found[name] = (ports[0], ports[1], processes[0])
    if LITELLM.exists() and not arguments.without_litellm:
        ports = [free_port(), free_port()]
        for port, backend in zip(ports, (whole, stream), strict=True):
            stack.enter_context(running(litellm(scratch, port, backend), port))
        found["litellm"] = (ports[0], ports[1], None)
    return found


def nginx_text(scratch: Path, whole: int, bare: int, bare_stream: int, stream: int) -> str:
    """Return nginx's configuration: the mock's static answer and two bare proxies."""
    proxy = "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;"
    return f"""daemon off; worker_processes 1; pid {scratch}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{ access_log off; default_type application/json; keepalive_requests 100000000;
client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy;
upstream whole {{ server 127.0.0.1:{whole}; keepalive 64; keepalive_requests 100000000; }}
server {{ listen 127.0.0.1:{whole}; location / {{ return 200 '{json.dumps(ANSWER)}'; }} }}
server {{ listen 127.0.0.1:{bare}; location / {{ proxy_pass http://whole; {proxy} }} }}
server {{ listen 127.0.0.1:{bare_stream};
location / {{ proxy_pass http://127.0.0.1:{stream}; {proxy} }} }}
}}"""


def moestro(scratch: Path, port: int, backend: int, workers: int) -> list[str]:
    """Write a fleet of one model with one backend; return the command that serves it."""
    path = scratch / f"fleet-{port}.toml"
    path.write_text(
        f'workers = {workers}\n[[models]]\nname = "mock"\n[[models.backends]]\n'
        f'url = "http://127.0.0.1:{backend}/v1"\n'
        f'[records]\nurl = "sqlite:///{scratch}/{port}.db"\n'
        f'[server]\nhost = "127.0.0.1"\nport = {port}\n'
    )
    return [sys.executable, "-m", "moestro", "serve", str(path)]


def litellm(scratch: Path, port: int, backend: int) -> list[str]:
    """Write LiteLLM's configuration for the same model; return its command."""
    path = scratch / f"litellm-{port}.yaml"
    path.write_text(
        "model_list:\n  - model_name: mock\n    litellm_params:\n      model: openai/mock\n"
        f"      api_base: http://127.0.0.1:{backend}/v1\n      api_key: none\n"
    )
    return [str(LITELLM), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server, silent, until the block ends; wait until its port answers."""
    null = subprocess.DEVNULL
    # LiteLLM would wait for a newer list of prices from the network, and wants a key of its own.
    surroundings = os.environ | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, env=surroundings)
    try:
        await_port(process, port, command)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def await_port(process: "subprocess.Popen[bytes]", port: int, command: list[str]) -> None:
    """Return when the port takes connections; exit when the process ends before."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    sys.exit(f"{Path(command[0]).name}: did not open port {port}: run its command by hand")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def compare(contestants: Contestants, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everybody in turns; medians, and p99 added to the direct one in the same repeat."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for name, (whole, _, _) in contestants.items():
        closed(whole, CLIENTS, 160)
        print(f"{name}: warm", file=sys.stderr)
    for _ in range(arguments.repeats):
        for name, (whole, stream, _) in contestants.items():
            slow = name == "litellm"
            seconds = arguments.seconds
            found = closed_for(whole, CLIENTS, seconds)
            # As many clients, asking half as often as they could be answered.
            half = found["requests_per_s"] / 2
            measures: list[tuple[str, Callable[[], dict[str, float]]]] = [
                (
                    "streams",
                    lambda port=stream, seconds=seconds: streams(
                        port, CLIENTS, NUM_CHUNKS, seconds
                    ),
                )
            ]
            if not slow:
                measures += [
                    ("rate", lambda port=whole, seconds=seconds: at_rate(port, RATE, seconds, 64)),
                    (
                        "half",
                        lambda port=whole, seconds=seconds, half=half: at_rate(
                            port, half, seconds, CLIENTS
                        ),
                    ),
                ]
            for label, measure in measures:
                found |= {f"{label}_{key}": value for key, value in measure().items()}
            rounds[name].append(added(found, rounds["direct"]))
    return {name: medians(found) for name, found in rounds.items()}


def added(found: dict[str, float], direct: list[dict[str, float]]) -> dict[str, float]:
    """Add what a contestant adds to the direct mock's p99 of the same repeat."""
    beside = direct[-1] if direct else found
    # The direct mock's half is another rate: where it answers at once, nothing is subtracted.
    keys = [key for key in ("p99_ms", "rate_p99_ms") if key in found]
    return found | {f"added_{key}": found[key] - beside[key] for key in keys}


def medians(found: list[dict[str, float]]) -> dict[str, float]:
    """Return each figure's median over the repeats."""
    return {key: round(statistics.median(each[key] for each in found), 3) for key in found[0]}


def soak(contestant: tuple[int, int, Any], requests: int) -> dict[str, float]:
    """Return resident bytes of all processes after a tenth of the requests and after all."""
    port, _, process = contestant
    closed(port, CLIENTS, requests // 10)
    early = resident_bytes(process.pid)
    closed(port, CLIENTS, requests - requests // 10)
    late = resident_bytes(process.pid)
    return {"requests": requests, "early": early, "late": late, "growth": late / early - 1}


def resident_bytes(pid: int) -> int:
    """Return resident bytes of a process and all that it started."""
    total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return total + sum(resident_bytes(int(child)) for child in children)


def show(results: dict[str, Any]) -> None:
    """Print one row for each contestant."""
    keys = ("requests_per_s", "p50_ms", "p99_ms", "added_p99_ms")
    keys += (
        "rate_requests_per_s",
        "rate_p99_ms",
        "added_rate_p99_ms",
        "half_requests_per_s",
        "half_p99_ms",
        "streams_chunks_per_s",
        "streams_chunks_per_read",
        "streams_broken",
    )
    table = Table("through", *keys)
    for name, found in results.items():
        table.add_row(name, *(f"{found[key]:.1f}" if key in found else "-" for key in keys))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
