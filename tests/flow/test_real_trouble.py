"""A real server in trouble: clients that leave, an engine that is killed or hangs, too much to do.

Next: test_real_drafts.py.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types import Completion

from tests.flow.processes import children_of
from tests.flow.real import NAME, TIMEOUT_S, Served, serving, wait_until

LEVELS = (4.0, 3.0, 2.0)
# A step takes some 0.2 ms at the least: seconds, whatever the machine.
MOST_TOKENS = 30_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("trouble"),
        max_length=32_768,
        max_batch=2,
        pressure={"steps": len(LEVELS), "dwell_s": 0.3},
        draft={"mode": "off"},
        watchdog_s=3.0,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def begin(client: openai.OpenAI) -> "openai.Stream[Completion]":
    """Begin a long answer and read a little of it."""
    stream = client.completions.create(
        model=NAME,
        prompt="def",
        max_tokens=MOST_TOKENS,
        stream=True,
        logprobs=0,
        extra_body={"ignore_eos": True},
    )
    for _ in range(3):
        next(stream)
    return stream


def test_a_client_that_leaves_is_forgotten_within_a_step(
    server: Served, client: openai.OpenAI
) -> None:
    before = server.settled("generation_tokens_total")
    stream = begin(client)
    wait_until(lambda: server.metric("kv_cache_usage_perc") > 0)
    assert server.metric("num_requests_running") == 1
    stream.close()
    assert wait_until(lambda: server.metric("num_requests_running") == 0) < 1
    wait_until(lambda: server.metric("kv_cache_usage_perc") == 0)
    made = server.settled("generation_tokens_total") - before
    assert 3 <= made < MOST_TOKENS / 2


def test_a_killed_engine_ends_its_streams_at_once_and_comes_back(
    server: Served, client: openai.OpenAI
) -> None:
    restarts = server.metric("engine_restarts_total")
    streams = [begin(client), begin(client)]
    (engine,) = engines(server.process.pid)
    os.kill(engine, signal.SIGKILL)
    killed_at = time.monotonic()
    for stream in streams:
        with pytest.raises(openai.APIError, match=r"engine died \(killed by signal 9\)"):
            list(stream)
    assert time.monotonic() - killed_at < 1
    assert server.get("/ready").status_code == 503
    answer = client.completions.create(model=NAME, prompt="def", max_tokens=4, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert server.get("/ready").status_code == 200
    assert server.metric("engine_restarts_total") == restarts + 1
    assert engines(server.process.pid) != [engine]


def test_an_engine_that_hangs_ends_its_streams_and_comes_back(
    server: Served, client: openai.OpenAI
) -> None:
    restarts, hangs = server.metric("engine_restarts_total"), server.metric("engine_hangs_total")
    stream = begin(client)
    (engine,) = engines(server.process.pid)
    os.kill(engine, signal.SIGSTOP)
    with pytest.raises(openai.APIError, match=r"engine was stuck \(no sign of life for 3 s\)"):
        list(stream)
    assert server.get("/ready").status_code == 503
    assert "the engine is stuck (no sign of life for 3 s): killing it" in server.log.read_text()
    answer = client.completions.create(model=NAME, prompt="def", max_tokens=4, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert server.get("/ready").status_code == 200
    assert server.metric("engine_restarts_total") == restarts + 1
    assert server.metric("engine_hangs_total") == hangs + 1
    assert engines(server.process.pid) != [engine]


def test_under_load_automatic_budgets_fall_in_declared_steps_and_come_back(
    server: Served,
) -> None:
    seen: set[float] = set()
    granted: list[tuple[float, float]] = []

    async def ask_on(client: openai.AsyncOpenAI, number: int) -> None:
        """Ask again and again until somebody was granted the least, and the metrics say so.

        An answer takes the engine longer than asking takes all clients together, or the queue
        would be empty now and then.
        """
        while LEVELS[-1] not in seen or all(level != LEVELS[-1] for level, _ in granted):
            raw = await client.completions.with_raw_response.create(
                model=NAME,
                prompt=f"def {number}",
                max_tokens=1500,
                extra_body={"experts": "auto", "ignore_eos": True},
            )
            usage = raw.parse().usage
            assert usage is not None
            level = float(raw.headers.get("x-moestro-experts", LEVELS[0]))
            mean = float(usage.to_dict()["mean_experts"])  # type: ignore[arg-type]
            granted.append((level, mean))

    async def flood() -> None:
        async with server.async_client() as client:
            asked = [asyncio.create_task(ask_on(client, number)) for number in range(48)]
            while not all(task.done() for task in asked):
                seen.add(await asyncio.to_thread(server.metric, "experts_level"))
                await asyncio.sleep(0.05)
            await asyncio.gather(*asked)

    asyncio.run(asyncio.wait_for(flood(), TIMEOUT_S))
    # Whether anyone is admitted at the step between depends on how fast the level falls.
    assert {level for level, _ in granted} <= set(LEVELS)
    assert LEVELS[-1] in {level for level, _ in granted}
    assert seen <= set(LEVELS)
    assert LEVELS[-1] in seen
    for level, mean in granted:
        assert mean == level or level == 3.0 > abs(mean - level) * 4
    wait_until(lambda: server.metric("experts_level") == LEVELS[0], timeout_s=5)
    assert asyncio.run(alone(server)) is None


async def alone(server: Served) -> str | None:
    async with server.async_client() as client:
        raw = await client.completions.with_raw_response.create(
            model=NAME, prompt="def", max_tokens=1, extra_body={"experts": "auto"}
        )
        found: str | None = raw.headers.get("x-moestro-experts")
        return found


def engines(pid: int) -> list[int]:
    """List a server's engine processes."""
    return [
        child
        for child in children_of(pid)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
