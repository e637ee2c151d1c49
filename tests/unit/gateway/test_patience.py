"""How long a backend is waited for, and what probes find. Next: test_faults.py."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from moestro.errors import BackendError
from moestro.gateway.config import BreakerConfig, ProbeConfig, TimeoutConfig
from moestro.gateway.faults import Fault
from moestro.gateway.fleet import BackendConfig
from moestro.gateway.health import Health
from moestro.gateway.probe import Probes
from moestro.gateway.queue import Member
from moestro.gateway.shared import Alone, RecentConversations
from moestro.gateway.upstream import Connections, build_upstream
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    Asking,
    Behavior,
    FakeServer,
    answer_of,
    events_of,
    gateway_over,
    raw,
    read_stream,
    replies,
    stall,
    well,
)


async def head_only(asking: Asking) -> None:
    await asking.head(200, "content-length: 9")
    await asyncio.sleep(60)


async def drips(asking: Asking) -> None:
    await asking.events(events_of(asking.body, num=200), pause_s=0.05)


@pytest.mark.parametrize("behavior", [stall, head_only])
def test_no_first_byte_in_time_is_a_fault(behavior: Behavior) -> None:
    timeouts = TimeoutConfig(first_token_s=0.2, between_tokens_s=5)

    async def work() -> None:
        config = replace(QUICK, retries=0, timeouts=timeouts)
        async with gateway_over({"m": [behavior]}, config) as running:
            with pytest.raises(BackendError, match=r"sent nothing|began no answer"):
                await running.ask()

    run(work())


def test_the_whole_takes_no_longer_than_it_may() -> None:
    timeouts = TimeoutConfig(whole_s=0.5)

    async def work() -> Any:
        config = replace(QUICK, retries=0, timeouts=timeouts)
        async with gateway_over({"m": [drips]}, config) as running:
            return await running.stream()

    text, said = read_stream(run(work()))
    assert text.startswith("w0 w1 ")
    assert "fell silent" in said[-1]["error"]["message"]


def test_a_slow_stream_is_not_taken_for_a_silent_one() -> None:
    async def slow(asking: Asking) -> None:
        await asking.events(events_of(asking.body), pause_s=0.05)
        await asking.end()

    async def work() -> Any:
        timeouts = TimeoutConfig(first_token_s=0.3, between_tokens_s=0.3)
        async with gateway_over({"m": [slow]}, replace(QUICK, timeouts=timeouts)) as running:
            await running.stream()
            return running

    assert run(work()).records[0].num_failovers == 0


def test_an_answer_without_end_is_refused() -> None:
    big = replies(200, answer_of({"messages": [], "model": "m"}, "x" * 100_000))

    async def work() -> None:
        config = replace(QUICK, retries=0, max_answer_bytes=50_000)
        async with gateway_over({"m": [big]}, config) as running:
            with pytest.raises(BackendError, match="too many bytes"):
                await running.ask()

    run(work())


async def _probe(behavior: Behavior) -> tuple[bool, str | None]:
    async with FakeServer(behavior).running() as server:
        config = BackendConfig(url=f"http://127.0.0.1:{server.port}/v1")
        upstream = build_upstream("m/0", "m", config)
        member = Member(upstream, Health(upstream, Alone(), BreakerConfig()))
        connections = Connections(TimeoutConfig())
        probes = Probes(connections, [], ProbeConfig(timeout_s=0.3))
        await probes.probe(member)
        await connections.close()
        view = member.health.view(0)
        assert server.asked[0].path == "/v1/models"
        return view.is_up, view.trouble


@pytest.mark.parametrize(
    ("behavior", "is_up", "trouble"),
    [
        (replies(200, {"data": []}), True, None),
        (replies(404), True, None),
        (replies(500), False, "answered a probe with status 500"),
        (raw(b""), False, "closed the connection"),
        (stall, False, "did not answer a probe in 0.3 s"),
    ],
)
def test_a_probe_tells_who_is_there(behavior: Behavior, is_up: bool, trouble: str | None) -> None:
    found, said = run(_probe(behavior))
    assert found == is_up
    assert said is None if trouble is None else trouble in (said or "")


def test_a_probe_that_waits_in_vain_leaves_no_connection_open() -> None:
    async def half_a_list(asking: Asking) -> None:
        await asking.head(200, "content-length: 1000000")
        try:
            while not asking.writer.transport.is_closing():
                await asking.send(b" ")
                await asyncio.sleep(0.01)
        finally:
            asking.is_gone.set()

    async def work() -> None:
        async with FakeServer(half_a_list).running() as server:
            config = BackendConfig(url=f"http://127.0.0.1:{server.port}/v1")
            upstream = build_upstream("m/0", "m", config)
            member = Member(upstream, Health(upstream, Alone(), BreakerConfig()))
            connections = Connections(TimeoutConfig())
            await Probes(connections, [], ProbeConfig(timeout_s=0.1)).probe(member)
            assert "did not answer a probe" in (member.health.trouble or "")
            await asyncio.wait_for(server.asked[0].is_gone.wait(), 2)
            await connections.close()

    run(work())


def test_what_a_probe_said_ends_with_the_next_good_one_and_what_a_request_said_does_not() -> None:
    upstream = build_upstream("m/0", "m", BackendConfig(url="http://127.0.0.1:9/v1"))
    health = Health(upstream, Alone(), BreakerConfig())
    health.note_probe("m/0 is not ready")
    assert health.view(0).trouble == "m/0 is not ready"
    health.note_probe(None)
    assert health.view(0).trouble is None
    health.note_fault(Fault("broken", "m/0 broke off", has_begun=False))
    health.note_probe(None)
    assert health.view(0).trouble == "m/0 broke off"
    health.note_success()
    assert health.view(0).trouble is None


def test_probes_repeat_while_the_gateway_runs() -> None:
    async def work() -> int:
        config = replace(QUICK, probe=ProbeConfig(every_s=0.02))
        async with gateway_over({"m": [replies(200, {"data": []})]}, config) as running:
            while len(running.servers["m"][0].asked) < 3:
                await asyncio.sleep(0.01)
            return len(running.servers["m"][0].asked)

    assert run(work()) >= 3


def test_a_client_that_leaves_does_not_keep_a_backend_out() -> None:
    async def work() -> int:
        config = replace(QUICK, retries=0, breaker=BreakerConfig(failures=1, open_s=0.05))
        async with gateway_over({"m": [[replies(500), stall, well]]}, config) as running:
            with pytest.raises(BackendError):
                await running.ask()
            await asyncio.sleep(0.1)
            asking = asyncio.ensure_future(running.ask())
            while len(running.servers["m"][0].asked) < 2:
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            return (await running.ask()).status

    assert run(work()) == 200


def test_conversations_are_forgotten_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moestro.gateway.shared._MOST_CONVERSATIONS", 2)
    known = RecentConversations(10, lambda: 0.0)
    for name in "abc":
        known.keep(name, "m")
    assert [known.find(name) for name in "abc"] == [None, "m", "m"]
