"""A server under attack in a process of its own, a neighbor who streams meanwhile, raw connections.

Knows no attack. Next: test_abuse.py, neighbor.py, besieged_server.py.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import moestro
from tests.flow.serving import wait_until

_ROOT = Path(moestro.__file__).parents[1]
TIMEOUT_S = 30.0
# Far above what any of them takes, far below what a stalled server would: the machine is shared.
SOON_S = 5.0
UNDISTURBED_S = 1.0
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_REQUESTS = re.compile(r"^moestro:num_requests_(?:running|waiting)\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Holdings:
    """What a server's process holds; all of it must go back to what it was."""

    num_requests: int
    num_tasks: int
    num_files: int


@dataclass(frozen=True)
class Server:
    """A server to attack, where it says what it does, and the key that it asks for."""

    process: "subprocess.Popen[Any]"
    port: int
    log: Path
    client: httpx.Client
    key: str = ""

    def ask(self, path: str, body: object, **headers: str) -> httpx.Response:
        """Send a body, JSON unless it is bytes already."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"content-type": "application/json"} | headers
        return self.client.post(path, content=content, headers=given)

    def open(self, *, reads_slowly: bool = False) -> socket.socket:
        """Open a connection."""
        connection = socket.socket()
        if reads_slowly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(TIMEOUT_S)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def say(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own and read to its end."""
        with self.open() as connection:
            connection.sendall(data)
            return read_all(connection)

    def holdings(self) -> Holdings:
        """Look at what it holds now."""
        num_requests = self.num_requests()
        self.process.send_signal(signal.SIGUSR1)
        assert self.process.stdout is not None
        return Holdings(
            num_requests=num_requests,
            num_tasks=int(self.process.stdout.readline()),
            num_files=len(os.listdir(f"/proc/{self.process.pid}/fd")),
        )

    def num_requests(self) -> int:
        """Ask how many requests run or wait."""
        found = _REQUESTS.findall(self.client.get("/metrics").text)
        return sum(int(float(number)) for number in found)

    def memory_bytes(self) -> int:
        """Return how much memory it has."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Report:
    """How a neighbor's streams went: the longest wait is that since the report before."""

    num_pieces: int
    longest_s: float
    num_cut: int


class Neighbor:
    """Somebody who reads one stream after another."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def report(self) -> Report:
        """Ask how it went."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Report(*json.loads(self._process.stdout.readline()))


@contextmanager
def besieged(folder: Path, *python: str, **settings: float) -> Iterator[Server]:
    """Start a server whose backend recites; it is gone when the block ends."""
    log = folder / "server.log"
    command = [sys.executable, *python, "-m", "tests.flow.besieged_server", json.dumps(settings)]
    with log.open("w") as errors, _start(command, stderr=errors.fileno()) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with connect(port) as client:
            yield Server(process, port, log, client)


def connect(port: int, key: str = "") -> httpx.Client:
    """Make a client for a port of this machine."""
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"x-api-key": key} if key else {},
        timeout=TIMEOUT_S,
        # What it would read the machine's certificates for, there is none of here.
        verify=False,
        trust_env=False,
    )


@contextmanager
def neighbor_of(server: Server, **question: Any) -> Iterator[Neighbor]:
    """Start a neighbor whose first pieces have come when the block begins."""
    body = json.dumps({"prompt": "Count.", **question, "stream": True})
    command = [sys.executable, "-m", "tests.flow.neighbor", str(server.port), server.key, body]
    with _start(command) as process:
        neighbor = Neighbor(process)
        wait_until(lambda: neighbor.report().num_pieces > 2)
        yield neighbor


@contextmanager
def undisturbed(neighbor: Neighbor, limit_s: float = UNDISTURBED_S) -> Iterator[None]:
    """Fail unless a neighbor's streams flow on through the block, as fast as before."""
    before = neighbor.report()
    yield
    after = neighbor.report()
    assert after.longest_s < limit_s
    assert after.num_cut == before.num_cut
    wait_until(lambda: neighbor.report().num_pieces > before.num_pieces)


def assert_refused(answer: httpx.Response, status: int, *words: str) -> None:
    """Fail unless this is OpenAI's error body with the right status, words in it, soon."""
    assert answer.status_code == status, answer.text[:500]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert not [word for word in words if word not in error["message"]], error
    assert len(error["message"]) < 500
    assert answer.elapsed.total_seconds() < SOON_S


def read_all(connection: socket.socket) -> bytes:
    """Read to a connection's end, however it ends."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionError:
        pass
    return data


def post(path: str, body: bytes, **headers: Any) -> bytes:
    """Write a whole request with a JSON body."""
    return head(path, content_length=len(body), **headers) + body


def head(path: str, method: str = "POST", **headers: Any) -> bytes:
    """Write the head of a request; headers that are None are left out."""
    given = {"host": "x", "content_type": "application/json"} | headers
    lines = (f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines).replace('_', '-')}\r\n".encode()


def wait_for(is_true: Any, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for something about another process."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


@contextmanager
def _start(command: list[str], stderr: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        command,
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.kill()
