"""Load on an OpenAI-compatible server: streams that ask again and again, or arrivals at a rate.

Knows HTTP and clocks, not whose server it is. Every time is the client's own.
"""

import asyncio
import http.client
import json
import random
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

CHAT_PATH = "/v1/chat/completions"


@dataclass
class Answer:
    """One answer: seconds from the request to the first token, between tokens, and in all."""

    first_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    whole_s: float = 0.0
    num_tokens: int = 0
    at_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """What each request asks for."""

    url: str
    model: str
    prompt_words: int
    max_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)


def words(number: int, seed: int) -> str:
    """Return a prompt of pseudo-random words, other ones for each seed."""
    draw = random.Random(seed)
    names = ("value", "index", "result", "return", "import", "class", "self", "data", "for", "path")
    return " ".join(draw.choice(names) for _ in range(number))


async def ask(client: httpx.AsyncClient, load: Load, seed: int) -> Answer:
    """Stream one chat completion to its end."""
    body = _body(load, seed)
    answer, start_s = Answer(), time.perf_counter()
    async with client.stream("POST", f"{load.url}{CHAT_PATH}", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                _note(answer, json.loads(line[6:]), time.perf_counter() - start_s)
    answer.whole_s = time.perf_counter() - start_s
    answer.gaps_s = [b - a for a, b in zip(answer.at_s, answer.at_s[1:], strict=False)]
    answer.first_s = answer.at_s[0] if answer.at_s else answer.whole_s
    answer.num_tokens = answer.num_tokens or len(answer.at_s)
    return answer


def _body(load: Load, seed: int) -> dict[str, Any]:
    return {
        "model": load.model,
        "messages": [{"role": "user", "content": words(load.prompt_words, seed)}],
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | load.extra


def _note(answer: Answer, chunk: dict[str, Any], at_s: float) -> None:
    choices = chunk.get("choices") or []
    if choices and (choices[0].get("delta") or {}).get("content"):
        answer.at_s.append(at_s)
    usage = chunk.get("usage")
    if usage:
        answer.num_tokens = usage["completion_tokens"]


def closed_loop(load: Load, streams: int, per_stream: int, seed: int = 0) -> dict[str, float]:
    """Keep so many streams busy; each asks again as soon as it is answered."""

    async def run() -> dict[str, float]:
        async with _client(streams) as client:

            async def stream(index: int) -> list[Answer]:
                first = seed + 1000 * index
                return [await ask(client, load, first + turn) for turn in range(per_stream)]

            start_s = time.perf_counter()
            answers = await asyncio.gather(*(stream(index) for index in range(streams)))
            seconds = time.perf_counter() - start_s
        return summarize([answer for part in answers for answer in part], seconds)

    return asyncio.run(run())


def open_loop(load: Load, per_second: float, number: int, seed: int = 0) -> dict[str, float]:
    """Send requests at exponential intervals, whether or not earlier ones are answered."""

    async def run() -> dict[str, float]:
        draw = random.Random(seed)
        async with _client(number) as client:
            tasks = []
            start_s = time.perf_counter()
            for index in range(number):
                tasks.append(asyncio.create_task(ask(client, load, seed + index)))
                await asyncio.sleep(draw.expovariate(per_second))
            answers = await asyncio.gather(*tasks)
            return summarize(answers, time.perf_counter() - start_s)

    return asyncio.run(run())


def disturbed(load: Load, streams: int, intruder: Load, seed: int = 0) -> dict[str, float]:
    """Return the gaps between streams' tokens before and while a long prompt is taken in."""

    async def run() -> dict[str, float]:
        async with _client(streams + 1) as client:
            tasks = [asyncio.create_task(ask(client, load, seed + i)) for i in range(streams)]
            start_s = time.perf_counter()
            await asyncio.sleep(2.0)
            came_s = time.perf_counter() - start_s
            long = await ask(client, intruder, seed + 999)
            answers = await asyncio.gather(*tasks)
        before, during = [], []
        for answer in answers:
            for a, b in zip(answer.at_s, answer.at_s[1:], strict=False):
                if b <= came_s and a > 0.5:
                    before.append(b - a)
                elif came_s < b <= came_s + long.first_s:
                    during.append(b - a)
        return {
            "prefill_s": long.first_s,
            "gaps_before": float(len(before)),
            "gaps_during": float(len(during)),
            "p95_before_s": quantile(before, 0.95),
            "p95_during_s": quantile(during, 0.95),
        }

    return asyncio.run(run())


def first_token_seconds(load: Load, number: int, seed: int) -> float:
    """Return the mean time to the first event of requests one by one, by a client of little cost.

    httpx itself takes some two milliseconds a request, which nobody should blame on a server.
    """
    address = urlsplit(load.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seconds = []
    for index in range(number):
        body = json.dumps(_body(load, seed + index) | {"max_tokens": 4})
        start_s = time.perf_counter()
        connection.request("POST", CHAT_PATH, body, {"content-type": "application/json"})
        response = connection.getresponse()
        if not response.readline().startswith(b"data: {"):
            raise RuntimeError(f"{response.status}: {response.read(300)!r}")
        seconds.append(time.perf_counter() - start_s)
        response.read()
    connection.close()
    return statistics.fmean(seconds)


def summarize(answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """Return tokens per second, and the mean and three quantiles of the times.

    "first" is the time to the first token, "gap" the time between two.
    """
    gaps_s = [gap for answer in answers for gap in answer.gaps_s]
    firsts_s = [answer.first_s for answer in answers]
    figures = {"tokens_per_s": sum(answer.num_tokens for answer in answers) / seconds}
    for name, values in (("first", firsts_s), ("gap", gaps_s)):
        figures[f"{name}_mean_s"] = statistics.fmean(values) if values else float("nan")
        for share in (0.5, 0.95, 0.99):
            figures[f"{name}_p{share * 100:.0f}_s"] = quantile(values, share)
    return figures


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, nearest rank; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure over repeats."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _client(streams: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=streams + 2)
    return httpx.AsyncClient(timeout=600, limits=limits)
