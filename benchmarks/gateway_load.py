"""Load on gateways through raw sockets: closed loops, arrivals at a fixed rate, and streams.

An answer with another status than 200 stops the benchmark; streams that end early are counted.
"""

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any

import uvloop

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request_bytes(port: int, stream: bool) -> bytes:
    """Return a whole HTTP request for one chat completion."""
    body = {"model": "mock", "messages": [{"role": "user", "content": "Say hello."}]}
    data = json.dumps(body | ({"stream": True} if stream else {})).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer none\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def closed(port: int, clients: int, requests: int) -> dict[str, float]:
    """Let each client ask again as soon as it is answered, `requests` in all."""
    return uvloop.run(_closed(port, clients, requests))


def at_rate(port: int, rate: float, seconds: float, clients: int) -> dict[str, float]:
    """Ask `rate` times a second; latency counts from when the request was due."""
    return uvloop.run(_at_rate(port, rate, seconds, clients))


def closed_for(port: int, clients: int, seconds: float) -> dict[str, float]:
    """Let each client ask again as soon as it is answered, for `seconds`."""
    return uvloop.run(_closed(port, clients, 0, seconds))


def streams(port: int, number: int, num_chunks: int, seconds: float) -> dict[str, float]:
    """Keep `number` streams open for `seconds`; return chunks per second and per read.

    Many chunks in one read say that a sender or the system joined them on the way.
    """
    return uvloop.run(_streams(port, number, num_chunks, seconds))


async def _closed(port: int, clients: int, requests: int, seconds: float = 0.0) -> dict[str, float]:
    request, latencies = request_bytes(port, False), []
    end_s = time.perf_counter() + seconds

    async def client() -> None:
        pair = await asyncio.open_connection("127.0.0.1", port)
        asked = 0
        while asked < requests // clients or time.perf_counter() < end_s:
            begun_s = time.perf_counter()
            await _ask(pair, request)
            latencies.append(time.perf_counter() - begun_s)
            asked += 1
        pair[1].close()

    return await _timed([client() for _ in range(clients)], latencies)


async def _at_rate(port: int, rate: float, seconds: float, clients: int) -> dict[str, float]:
    request, latencies = request_bytes(port, False), []
    due: asyncio.Queue[float | None] = asyncio.Queue()
    # Each has asked once before the clock runs: how long a connection takes is another question.
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]
    await asyncio.gather(*(_ask(pair, request) for pair in pairs))

    async def client(pair: Pair) -> None:
        while (due_s := await due.get()) is not None:
            await _ask(pair, request)
            latencies.append(time.perf_counter() - due_s)
        pair[1].close()

    async def arrivals() -> None:
        begun_s = time.perf_counter()
        for i in range(int(rate * seconds)):
            due_s = begun_s + i / rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            due.put_nowait(due_s)
        for _ in range(clients):
            due.put_nowait(None)

    return await _timed([arrivals(), *map(client, pairs)], latencies)


async def _streams(port: int, number: int, num_chunks: int, seconds: float) -> dict[str, float]:
    request, counts = request_bytes(port, True), []
    begun_s = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < begun_s + seconds:
            counts.append(await _one_stream(port, request))

    await asyncio.gather(*(client() for _ in range(number)))
    taken_s = time.perf_counter() - begun_s
    broken = sum(chunks < num_chunks + 2 for chunks, _ in counts)
    chunks, reads = (sum(column) for column in zip(*counts, strict=True))
    return {
        "chunks_per_s": chunks / taken_s,
        "chunks_per_read": chunks / reads,
        "number": len(counts),
        "broken": broken,
    }


async def _one_stream(port: int, request: bytes) -> tuple[int, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    tail, chunks, reads = b"", 0, 0
    while b"[DONE]" not in tail:
        data = await reader.read(65536)
        if not data:
            break
        chunks += (tail[-5:] + data).count(b"data: ")
        reads += 1
        tail = tail[-16:] + data
    writer.close()
    return chunks, reads


async def _ask(pair: Pair, request: bytes) -> None:
    reader, writer = pair
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head[:16]:
        raise RuntimeError(f"not answered: {head[:200]!r}")
    size = head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
    await reader.readexactly(int(size))


async def _timed(work: list[Coroutine[Any, Any, None]], latencies: list[float]) -> dict[str, float]:
    begun_s = time.perf_counter()
    await asyncio.gather(*work)
    taken_s = time.perf_counter() - begun_s
    ordered = sorted(latencies)
    return {
        "requests_per_s": len(ordered) / taken_s,
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
    }
