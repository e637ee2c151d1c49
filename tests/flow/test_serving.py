"""How a server process listens and ends: signals, answers under way, ports, addresses."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import moestro
from moestro.cli.serving import is_private, listen
from moestro.errors import ConfigError
from moestro.server.config import ServerConfig
from tests.flow.scripted_server import TEXT

ROOT = Path(moestro.__file__).parents[1]
TIMEOUT_S = 30
QUESTION = {"model": "scripted", "prompt": "Count.", "stream": True, "max_tokens": 100}


@dataclass(frozen=True)
class Running:
    process: "subprocess.Popen[str]"
    url: str

    def tell(self, name: signal.Signals) -> None:
        self.process.send_signal(name)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)


@contextmanager
def scripted(delay_s: float = 0.0, drain_s: float = 20.0) -> Iterator[Running]:
    command = [sys.executable, "-m", "tests.flow.scripted_server", str(delay_s), str(drain_s)]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        try:
            yield Running(process, f"http://127.0.0.1:{process.stdout.readline().strip()}")
        finally:
            process.kill()


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_answer_under_way_end_and_lets_nobody_in(name: signal.Signals) -> None:
    with scripted(delay_s=0.05) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=QUESTION) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            server.tell(name)
            time.sleep(0.3)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{server.url}/health")
            *events, done = [line.removeprefix("data: ") for line in lines if line]
        texts = [json.loads(event)["choices"][0]["text"] for event in events]
        assert TEXT.endswith("".join(texts))
        assert len("".join(texts)) > len(TEXT) // 2
        assert done == "[DONE]"
        assert server.wait() == 0


def test_a_second_signal_ends_the_server_at_once() -> None:
    with (
        scripted(delay_s=1.0) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json=QUESTION) as answer,
    ):
        assert answer.status_code == 200
        server.tell(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        began = time.monotonic()
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < 3
        # However the connection ends, no whole answer may be pretended.
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()


def test_an_idle_connection_does_not_hold_up_the_end() -> None:
    with scripted() as server, httpx.Client() as client:
        assert client.get(f"{server.url}/health").status_code == 200
        began = time.monotonic()
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < 5


def test_a_connection_outlives_the_five_seconds_that_clients_keep_theirs() -> None:
    with scripted() as server:
        connection = http.client.HTTPConnection(
            server.url.removeprefix("http://"), timeout=TIMEOUT_S
        )
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        kept = connection.sock
        time.sleep(5.5)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        assert connection.sock is kept
        connection.close()


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_a_monitor_may_ask_for_the_head_only(path: str) -> None:
    with scripted() as server, httpx.Client(base_url=server.url) as client:
        head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with listen(ServerConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127.0.0.1 is in use: .*--port"):
            listen(ServerConfig(port=port))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        listen(ServerConfig(host="192.0.2.1", port=0))


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python was built without IPv6")
def test_an_address_can_be_one_of_ipv6() -> None:
    try:
        listener = listen(ServerConfig(host="::1", port=0))
    except ConfigError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with listener:
        assert listener.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("example.org", False),
    ],
)
def test_only_loopback_is_private(host: str, expected: bool) -> None:
    assert is_private(host) is expected


def test_small_pieces_of_an_answer_are_sent_at_once() -> None:
    with listen(ServerConfig(port=0)) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
