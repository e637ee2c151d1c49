"""HTTP/1.1 as servers speak it, well or badly: what comes of an answer, and of its connection.

Each server is a real one that sends bytes as they stand here. Next: test_faults.py, upstreams.py.
"""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from moestro.errors import ConfigError
from moestro.gateway.config import TimeoutConfig
from moestro.gateway.faults import Fault
from moestro.gateway.fleet import BackendConfig
from moestro.gateway.upstream import Connections, Upstream, build_upstream
from tests.unit.gateway.test_failover import run

TIMEOUTS = TimeoutConfig(connect_s=2, first_token_s=5, between_tokens_s=5, whole_s=10)
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\ntrailer: x\r\n\r\n"
)
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Site:
    """A server that answers each request with the next of its answers, in pieces; None hangs up."""

    connections: Connections
    upstream: Upstream
    heads: list[bytes]
    num_connections: int = 0

    async def ask(self, body: bytes = b"{}", *, is_repeatable: bool = True) -> bytes:
        incoming = await self.connections.post(
            self.upstream, "/v1/completions", body, is_repeatable=is_repeatable
        )
        try:
            return await incoming.read_whole(10**9)
        finally:
            incoming.close()


@asynccontextmanager
async def serving(
    *answers: Sequence[bytes | None],
    timeouts: TimeoutConfig = TIMEOUTS,
    pause_s: float = 0.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Site]:
    waiting = list(answers)
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        site.heads.append(head)
        for piece in waiting.pop(0) if len(waiting) > 1 else waiting[0]:
            if piece is None:
                writer.close()
                return False
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return True

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.num_connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await answer(reader, writer):
                pass
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = BackendConfig(url=f"{'http' if tls is None else 'https'}://{address}/some/v1/")
    site = Site(Connections(timeouts), build_upstream("m/0", "m", config), [])
    try:
        yield site
    finally:
        await site.connections.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def pieces_of(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


@pytest.mark.parametrize(
    "answer",
    [
        [WHOLE],
        pieces_of(WHOLE),
        [CHUNKED],
        pieces_of(CHUNKED),
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nlink: x\r\n\r\n" + WHOLE],
        [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", None],
        [b"HTTP/1.0 200 OK\r\n\r\nhello", None],
        [WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), None],
    ],
)
def test_every_way_to_frame_an_answer_gives_its_bytes(answer: list[bytes | None]) -> None:
    async def work() -> list[bytes]:
        async with serving(answer) as site:
            return [await site.ask() for _ in range(3)]

    assert run(work()) == [b"hello"] * 3


@pytest.mark.parametrize(
    ("answer", "num"),
    [
        ([WHOLE], 1),
        ([CHUNKED], 1),
        ([WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")], 3),
        ([WHOLE.replace(b"1.1", b"1.0")], 3),
        # What nobody asked for must not become the next request's answer.
        ([WHOLE + b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother"], 3),
        ([WHOLE + b"more"], 3),
    ],
)
def test_a_connection_is_used_again_where_that_is_safe(answer: list[bytes], num: int) -> None:
    async def work() -> Any:
        async with serving(answer) as site:
            return [await site.ask() for _ in range(3)], site.num_connections

    assert run(work()) == ([b"hello"] * 3, num)


def test_what_comes_between_two_requests_ends_the_connection() -> None:
    async def work() -> Any:
        async with serving([WHOLE, b"HTTP/1.1 408 X\r\ncontent-length: 0\r\n\r\n"]) as site:
            found = []
            for _ in range(3):
                found.append(await site.ask())
                await asyncio.sleep(0.05)
            return found, site.num_connections

    assert run(work()) == ([b"hello"] * 3, 3)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ([HEAD + b"5\r\nhello\r\nzz\r\n"], "broken"),
        ([HEAD + b"5\r\nhello\r\n", None], "broken"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", None], "broken"),
        ([HEAD + b"5\r\nhello\r\n0\r\n" + b"x: y\r\n" * 200_000], "broken"),
        ([HEAD + b"5\r\nhello\r\n5;" + b"x" * 1_200_000], "broken"),
        ([b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx"], "garbage"),
        ([b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"], "garbage"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000], "garbage"),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n"], "garbage"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"], "garbage"),
        ([b"SSH-2.0-OpenSSH\r\n"], "garbage"),
        ([None], "broken"),
    ],
)
def test_a_bad_answer_is_a_fault_at_once(answer: list[bytes | None], kind: str) -> None:
    async def work() -> Any:
        # A server that says no more and goes on waiting: no end of a connection tells of it.
        async with serving(answer) as site:
            began = asyncio.get_running_loop().time()
            with pytest.raises(Fault) as raised:
                await site.ask()
            return raised.value.kind, asyncio.get_running_loop().time() - began

    found, seconds = run(work())
    assert found == kind
    assert seconds < TIMEOUTS.between_tokens_s / 2


def test_what_came_before_a_break_is_read_first() -> None:
    async def work() -> Any:
        async with serving([HEAD + b"5\r\nhello\r\nzz\r\n"]) as site:
            incoming = await site.connections.post(site.upstream, "/v1/completions", b"{}")
            found = await incoming.read()
            with pytest.raises(Fault, match="broke off"):
                await incoming.read()
            incoming.close()
            return found

    assert run(work()) == b"hello"


def test_silence_is_noticed_by_the_time_between_tokens_also_behind_the_first() -> None:
    timeouts = replace(TIMEOUTS, between_tokens_s=0.2)

    async def work() -> float:
        async with serving([HEAD + b"5\r\nhello\r\n"], timeouts=timeouts) as site:
            began = asyncio.get_running_loop().time()
            with pytest.raises(Fault, match="fell silent"):
                await site.ask()
            return asyncio.get_running_loop().time() - began

    assert 0.2 <= run(work()) < TIMEOUTS.first_token_s / 2


def test_a_backend_is_not_silent_while_nobody_reads_it() -> None:
    timeouts = replace(TIMEOUTS, between_tokens_s=0.1)

    async def work() -> bytes:
        async with serving([WHOLE[:-1], WHOLE[-1:]], timeouts=timeouts, pause_s=0.05) as site:
            incoming = await site.connections.post(site.upstream, "/v1/completions", b"{}")
            await asyncio.sleep(0.4)
            found = await incoming.read_whole(100)
            incoming.close()
            return found

    assert run(work()) == b"hello"


def test_a_slow_reader_holds_the_backend_back() -> None:
    piece = b"x" * 100_000
    num = 400
    sent: list[int] = []

    async def work() -> int:
        async with serving() as site:
            server = await asyncio.start_server(pour, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            upstream = replace(site.upstream, place=replace(site.upstream.place, port=port))
            incoming = await site.connections.post(upstream, "/v1/completions", b"{}")
            await asyncio.sleep(0.3)
            num_before = len(sent)
            size = len(await incoming.read_whole(10**9))
            incoming.close()
            server.close()
            assert num_before < num / 2
            return size

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (num * len(piece)))
        for number in range(num):
            writer.write(piece)
            await writer.drain()
            sent.append(number)
        writer.close()

    assert run(work()) == num * len(piece)


def test_an_answer_before_the_whole_request_does_not_free_the_connection() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        await is_released.wait()
        writer.close()
        is_ended.set()

    is_released, is_ended = asyncio.Event(), asyncio.Event()

    async def work() -> Any:
        async with serving() as site:
            server = await asyncio.start_server(hasty, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            upstream = replace(site.upstream, place=replace(site.upstream.place, port=port))
            incoming = await site.connections.post(upstream, "/v1/completions", b"x" * 2**25)
            found = await incoming.read_whole(100)
            incoming.close()
            idle = site.connections._idle.get(upstream.place)
            is_released.set()
            await is_ended.wait()
            await asyncio.sleep(0)
            server.close()
            return found, idle

    assert run(work()) == (b"hello", None)


def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moestro.gateway.upstream._KEPT_S", 0.05)

    async def work() -> Any:
        async with serving([WHOLE]) as site:
            await asyncio.gather(site.ask(), site.ask())
            kept = len(site.connections._all)
            await asyncio.sleep(0.2)
            left = len(site.connections._all)
            await site.ask()
            return kept, left, site.num_connections

    assert run(work()) == (2, 0, 3)


def test_closing_ends_what_is_under_way_and_keeps_nothing() -> None:
    async def work() -> Any:
        async with serving([HEAD]) as site:
            asking = asyncio.ensure_future(site.ask())
            while not site.heads:
                await asyncio.sleep(0.01)
            await site.connections.close()
            with pytest.raises(Fault):
                await asking
            return len(site.connections._all)

    assert run(work()) == 0


def test_a_request_has_our_headers_and_the_servers_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-1")

    async def work() -> bytes:
        async with serving([WHOLE]) as site:
            config = replace(site.upstream.config, key="env:UPSTREAM_KEY")
            site.upstream = build_upstream("m/0", "m", config)
            await site.ask(b"{ }")
            return site.heads[0]

    first, *lines = run(work()).decode().strip().split("\r\n")
    fields = dict(line.split(": ") for line in lines)
    assert first == "POST /some/v1/completions HTTP/1.1"
    assert fields.pop("host").startswith("127.0.0.1:")
    assert fields == {
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "authorization": "Bearer sk-1",
        "content-length": "3",
        "content-type": "application/json",
        "user-agent": "moestro",
    }


@pytest.mark.parametrize("key", ["sk\r\nx: y", "sk-\u00e9"])
def test_a_key_that_would_change_a_head_is_refused(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", key)
    config = BackendConfig(url="http://127.0.0.1:1/v1", key="env:UPSTREAM_KEY")
    with pytest.raises(ConfigError) as raised:
        build_upstream("m/0", "m", config)
    assert key not in str(raised.value)


def test_a_name_without_an_address_is_a_refused_connection() -> None:
    async def work() -> Fault:
        async with serving() as site:
            config = BackendConfig(url="http://nobody.invalid/v1")
            site.upstream = build_upstream("m/0", "m", config)
            with pytest.raises(Fault, match="refuses connections") as raised:
                await site.ask()
            return raised.value

    fault = run(work())
    assert (fault.kind, fault.has_begun) == ("connect", False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1 that nobody else has signed."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    options = ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run([*command.split(), *options, *files], check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.mark.parametrize("is_trusted", [True, False])
def test_only_a_server_with_a_good_certificate_is_asked(
    is_trusted: bool, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def work() -> list[bytes]:
        async with serving([WHOLE], tls=context) as site:
            if is_trusted:
                return [await site.ask(), await site.ask()]
            with pytest.raises(Fault, match="refuses connections"):
                await site.ask()
            return site.heads

    assert run(work()) == ([b"hello"] * 2 if is_trusted else [])
