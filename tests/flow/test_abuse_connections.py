"""Connections that no client should make: they end soon, and leave nothing behind.

Next: test_abuse_model.py.
"""

import asyncio
import json
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.flow.siege import (
    COMPLETIONS,
    TIMEOUT_S,
    Neighbor,
    Server,
    besieged,
    head,
    neighbor_of,
    post,
    read_all,
    undisturbed,
    wait_for,
)

QUESTION = {"model": "scripted", "prompt": "x", "max_tokens": 3}
ENDLESS = {"model": "scripted", "prompt": "x", "ignore_eos": True, "max_tokens": 8000}
SHORT = json.dumps(QUESTION).encode()
LONG = json.dumps(ENDLESS | {"stream": True}).encode()
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
CHUNKED = head(COMPLETIONS, transfer_encoding="chunked")
NUM_CONNECTIONS = 1000
NUM_ANSWERED = 50
# What the server waits for a head, a body or a reader that does not come.
PATIENCE_S = 1.0


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """Let this process and those that it starts open a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4 * NUM_CONNECTIONS
    if hard != resource.RLIM_INFINITY and hard < enough:
        pytest.skip(f"at most {hard} files may be open here, {enough} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, many_files: None) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("siege")
    with besieged(folder, patience_s=PATIENCE_S, max_requests=NUM_ANSWERED) as server:
        yield server


@pytest.fixture(scope="module")
def neighbor(server: Server) -> Iterator[Neighbor]:
    with neighbor_of(server, **ENDLESS) as neighbor:
        yield neighbor


@pytest.fixture(scope="module", autouse=True)
def nothing_left(server: Server, neighbor: Neighbor) -> Iterator[None]:
    """Prove that the server holds no more in the end than it did before."""
    before = server.holdings()
    yield
    wait_for(lambda: server.holdings() == before)


@pytest.fixture(autouse=True)
def peace(neighbor: Neighbor) -> Iterator[None]:
    """Prove that a neighbor's stream flows on through every test."""
    with undisturbed(neighbor):
        yield


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00" + b"\0" * 200, 400, "invalid_http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http"),
        (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", 400, "invalid_http"),
        (b"FROB /health HTTP/1.1\r\nhost: x\r\n\r\n", 400, "invalid_http"),
        (head(COMPLETIONS, content_length=-1), 400, "invalid_http"),
        (head(COMPLETIONS, content_length="9" * 100), 400, "invalid_http"),
        (head(COMPLETIONS, content_length="3\r\ncontent-length: 4"), 400, "invalid_http"),
        (head(COMPLETIONS, content_length=3, transfer_encoding="chunked"), 400, "invalid_http"),
        (CHUNKED + b"zz\r\n", 400, "invalid_http"),
        (CHUNKED + b"1;" + b"a" * 200_000, 431, "request_head_too_large"),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * 40_000, 431, "request_head_too_large"),
        (GET + b"x: " + b"a" * 100_000 + b"\r\n\r\n", 431, "request_head_too_large"),
        (GET + b"x: " + b"a" * 5_000_000, 431, "request_head_too_large"),
        (GET + b"a: b\r\n" * 20_000 + b"\r\n", 431, "request_head_too_large"),
        (b"GET /?" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431, "request_head_too_large"),
        (b"\r\n" * 100_000, 431, "request_head_too_large"),
        (head(COMPLETIONS, content_length=10**15), 413, "request_too_large"),
        (head(COMPLETIONS, content_length=100) + b"{", 408, "request_timeout"),
        (CHUNKED, 408, "request_timeout"),
        (head(COMPLETIONS, content_type=None, connection="close"), 415, "unsupported_media_type"),
    ],
    ids=range(20),
)
def test_what_is_no_whole_request_gets_an_error_and_no_patience(
    server: Server, sent: bytes, status: int, code: str
) -> None:
    began = time.monotonic()
    answer = server.say(sent)
    assert time.monotonic() - began < PATIENCE_S + 5
    begin, _, body = answer.partition(b"\r\n\r\n")
    assert begin.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/json" in begin
    assert json.loads(body)["error"]["code"] == code


@pytest.mark.parametrize("begun", [b"", b"POST /v1/completions HTTP/1.1\r\nhos"])
def test_a_connection_without_a_head_is_closed(server: Server, begun: bytes) -> None:
    began = time.monotonic()
    assert server.say(begun) == b""
    assert time.monotonic() - began < PATIENCE_S + 5


def test_a_body_of_a_few_bytes_a_second_is_refused(server: Server) -> None:
    with server.open() as connection:
        connection.sendall(head(COMPLETIONS, content_length=len(SHORT)))
        began = time.monotonic()
        connection.settimeout(0.2)
        answer = b""
        for byte in SHORT:
            connection.sendall(bytes((byte,)))
            try:
                answer = connection.recv(65536)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert PATIENCE_S <= time.monotonic() - began < PATIENCE_S + 5


def test_a_client_of_http_1_0_gets_its_answer_and_an_end(server: Server) -> None:
    request = post(COMPLETIONS, SHORT).replace(b"HTTP/1.1", b"HTTP/1.0")
    begin, _, body = server.say(request).partition(b"\r\n\r\n")
    assert begin.startswith(b"HTTP/1.1 200 ")
    assert b"chunked" not in begin
    assert json.loads(body)["usage"]["completion_tokens"] == 3


def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    bodies = [json.dumps(QUESTION | {"max_tokens": number}).encode() for number in (3, 2, 1)]
    requests = [post(COMPLETIONS, body) for body in bodies[:2]]
    requests.append(post(COMPLETIONS, bodies[2], connection="close"))
    answers = server.say(b"".join(requests)).split(b"HTTP/1.1 ")[1:]
    used = [json.loads(answer.partition(b"\r\n\r\n")[2])["usage"] for answer in answers]
    assert [usage["completion_tokens"] for usage in used] == [3, 2, 1]


@pytest.mark.parametrize("behind", [b"", post(COMPLETIONS, SHORT), b"NONSENSE\r\n\r\n"])
def test_who_leaves_in_the_middle_ends_the_work_for_him(server: Server, behind: bytes) -> None:
    num_before = server.num_requests()
    with server.open() as connection:
        connection.sendall(post(COMPLETIONS, LONG))
        assert b"data: " in connection.recv(65536) + connection.recv(65536)
        connection.sendall(behind)
    wait_for(lambda: server.num_requests() == num_before, timeout_s=3)


def test_who_reads_a_byte_at_a_time_is_cut_off(tmp_path: Path) -> None:
    asked = ENDLESS | {"stream": True, "logprobs": 20, "xray": True}
    with (
        besieged(tmp_path, delay_s=0, patience_s=PATIENCE_S) as server,
        neighbor_of(server, model="scripted", max_tokens=20) as neighbor,
        undisturbed(neighbor),
        server.open(reads_slowly=True) as connection,
    ):
        connection.sendall(post(COMPLETIONS, json.dumps(asked).encode()))
        for _ in range(10):
            assert len(connection.recv(1)) == 1
            time.sleep(0.05)
        wait_for(lambda: longest_answer(server) > 20)
        assert longest_answer(server) < 8000


def longest_answer(server: Server) -> int:
    """Return how many tokens the longest answer had that has ended."""
    found = re.findall(r" (\d+) tokens$", server.log.read_text(), re.MULTILINE)
    return max(map(int, found), default=0)


def test_a_thousand_requests_at_once_are_answered_or_refused(server: Server) -> None:
    memory = server.memory_bytes()
    statuses = asyncio.run(ask_at_once(server.port))
    assert len(statuses) == NUM_CONNECTIONS
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= NUM_ANSWERED // 2
    assert server.memory_bytes() < memory + 100 * 2**20


def test_a_thousand_silent_connections_are_closed(server: Server) -> None:
    connections = [server.open() for _ in range(NUM_CONNECTIONS)]
    for connection in connections[::2]:
        connection.sendall(b"POST / HTTP/1.1\r\nhost")
    assert server.client.get("/health").status_code == 200
    for connection in connections:
        assert read_all(connection) == b""
        connection.close()


async def ask_at_once(port: int) -> list[int]:
    """Ask on as many connections as there may be, all open before the first question."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(NUM_CONNECTIONS)]
    asked = json.dumps(QUESTION | {"max_tokens": 20}).encode()
    for _, writer in opened:
        writer.write(post(COMPLETIONS, asked, connection="close"))
    answers = await asyncio.wait_for(
        asyncio.gather(*(each.read() for each, _ in opened)), TIMEOUT_S
    )
    for _, writer in opened:
        writer.close()
    return [int(answer.split(b" ", 2)[1]) for answer in answers]


def test_the_end_under_load_loses_no_answer(tmp_path: Path) -> None:
    asked = QUESTION | {"max_tokens": 20, "stream": True}
    with besieged(tmp_path, delay_s=0.05, drain_s=20.0) as server:
        connections = [server.open() for _ in range(60)]
        for connection in connections:
            connection.sendall(post(COMPLETIONS, json.dumps(asked).encode()))
        wait_for(lambda: server.num_requests() == len(connections))
        server.process.send_signal(signal.SIGTERM)
        answers = [read_all(connection) for connection in connections]
        assert {answer.count(b"data: {") for answer in answers} == {answers[0].count(b"data: {")}
        assert all(b"data: [DONE]" in answer for answer in answers)
        assert server.process.wait(TIMEOUT_S) == 0
        for connection in connections:
            connection.close()


def test_a_second_signal_under_load_ends_the_server_at_once(tmp_path: Path) -> None:
    with besieged(tmp_path, drain_s=60.0) as server:
        connections = [server.open() for _ in range(60)]
        for connection in connections:
            connection.sendall(post(COMPLETIONS, LONG))
        wait_for(lambda: server.num_requests() == len(connections))
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: is_closed(server.port))
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_S) == 0
        assert time.monotonic() - began < 3
        for connection in connections:
            assert b"[DONE]" not in read_all(connection)
            connection.close()
        # To be told to stop is no fault.
        assert "Traceback" not in server.log.read_text()


def is_closed(port: int) -> bool:
    """Tell whether nobody listens any more."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_python_itself_finds_nothing_left_open(tmp_path: Path) -> None:
    with besieged(tmp_path, "-X", "dev", "-W", "always", patience_s=0.3) as server:
        for sent in (GET, CHUNKED, head(COMPLETIONS, content_length=10**9), b"NONSENSE\r\n\r\n"):
            server.say(sent)
        with pytest.raises(httpx.ReadTimeout):
            server.client.post(COMPLETIONS, json=ENDLESS, timeout=0.3)
        with server.open() as connection:
            connection.sendall(post(COMPLETIONS, LONG) + post(COMPLETIONS, SHORT))
            connection.recv(1000)
        several = QUESTION | {"prompt": ["x"] * 5, "n": 3, "stream": True}
        assert b"[DONE]" in server.client.post(COMPLETIONS, json=several).content
        assert server.client.post(COMPLETIONS, json={"prompt": 1}).status_code == 400
        wait_for(lambda: server.num_requests() == 0)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_S) == 0
        said = server.log.read_text()
    found = ("Warning", "never awaited", "unclosed", "Traceback", "never retrieved", "destroyed")
    assert not [word for word in found if word in said], said
