"""Connections: who sends no whole head, or reads nothing, is cut off; nobody else notices."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from moestro.errors import ConfigError
from moestro.server.bodies import BodyConfig, BodyGuard
from moestro.server.connections import ConnectionConfig
from tests.flow.serving import serving
from tests.unit.server.asgi import say_key, say_size

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HASTY = ConnectionConfig(head_timeout_s=0.1, stall_timeout_s=0.1)
Client = Callable[[int], Coroutine[Any, Any, None]]


async def flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with more than any buffer holds, as fast as it is taken."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2000):
        body = {"type": "http.response.body", "body": b"x" * 65536, "more_body": True}
        await send(body)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def run(app: Any, client: Client) -> None:
    """Serve, and let the client do what it does."""
    with serving(app, HASTY) as address:
        asyncio.run(asyncio.wait_for(client(int(address.rpartition(":")[2])), 20))


async def trickle(writer: asyncio.StreamWriter) -> None:
    """Send a byte from time to time."""
    for _ in range(1000):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nhos"])
def test_half_a_head_is_not_waited_for(begun: bytes) -> None:
    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        assert await reader.read() == b""
        writer.close()

    run(say_key, client)


def test_a_head_that_trickles_in_is_not_waited_for() -> None:
    async def client(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionError):
            await trickle(writer)
        writer.close()

    run(say_key, client)


def test_a_connection_that_asks_again_and_again_stays() -> None:
    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(4):
            writer.write(GET[:10])
            await asyncio.sleep(0.05)
            writer.write(GET[10:])
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            await reader.readuntil(b"0\r\n\r\n")
        await asyncio.sleep(0.2)
        writer.write(GET)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()

    run(say_key, client)


def test_a_reader_that_reads_nothing_is_cut_off() -> None:
    ended: list[str | None] = []

    async def watch(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await flood(scope, receive, send)
        finally:
            ended.append(scope.get("path"))

    async def client(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.sendall(GET)
            while "/" not in ended:
                await asyncio.sleep(0.01)

    run(watch, client)
    assert "/" in ended


def test_a_slow_reader_that_goes_on_reading_gets_everything() -> None:
    async def drip(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(GET)
        size = 0
        while data := await reader.read(65536):
            size += data.count(b"x")
            await asyncio.sleep(0.001)
            if size == 20 * 65536:
                break
        writer.close()
        assert size == 20 * 65536

    run(drip, client)


@pytest.mark.parametrize(("length", "pieces"), [(None, [b"a", b"", b"bc"]), (3, [b"abc"])])
def test_old_clients_get_a_body_without_chunks_to_the_connections_end(
    length: int | None, pieces: list[bytes]
) -> None:
    async def speak(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [] if length is None else [(b"Content-Length", b"%d" % length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def client(port: int) -> None:
        for method, body in ((b"GET", b"abc"), (b"HEAD", b"")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(method + b" / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            head, _, found = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            assert b"transfer-encoding" not in head
            assert b"connection: close" in head
            assert found == body

    run(speak, client)


def test_who_uploads_too_much_still_reads_why() -> None:
    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(40):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"request_too_large" in answer
        writer.close()

    run(BodyGuard(say_size, BodyConfig(max_bytes=100_000)), client)


@pytest.mark.parametrize("name", ["head_timeout_s", "idle_timeout_s", "stall_timeout_s"])
def test_no_time_at_all_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        ConnectionConfig(**{name: 0})
