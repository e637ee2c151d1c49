"""A new fleet takes over: streams of the old one end well, and only then do its connections close.

Next: test_open.py.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from moestro.api.relay import Call, Reply
from moestro.errors import BackendError, ConfigError
from moestro.gateway import current
from moestro.gateway.config import BreakerConfig
from moestro.gateway.current import CurrentGateway
from moestro.gateway.fleet import BackendConfig, Fleet, FleetModel
from moestro.gateway.gateway import Gateway, Surroundings
from moestro.gateway.shared import Alone
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    Asking,
    FakeServer,
    events_of,
    read_stream,
    reset,
    well,
    whole_text,
)


class WatchedGateway(Gateway):
    """A gateway that says when it was stopped."""

    is_stopped = False

    async def stop(self) -> None:
        await super().stop()
        self.is_stopped = True


@dataclass
class Slow:
    """Streams half an answer, and the rest when a test says so."""

    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, asking: Asking) -> None:
        events = events_of(asking.body)
        await asking.events(events[:4])
        await self.may_go_on.wait()
        for event in events[4:]:
            await asking.chunk(event)
        await asking.end()


@dataclass
class World:
    current: CurrentGateway
    built: list[WatchedGateway]

    async def ask(self, model: str, *, is_stream: bool = False) -> Reply:
        body = b'{"model": "%s", "prompt": "say ", "stream": %s}'
        body %= (model.encode(), b"true" if is_stream else b"false")
        reply = await self.current.relay(Call(path="/v1/completions", body=body, request_id="r"))
        assert reply is not None
        return reply

    async def stopped(self, place: int) -> None:
        async with asyncio.timeout(20):
            while not self.built[place].is_stopped:
                await asyncio.sleep(0.01)


def fleet(server: FakeServer, name: str = "m") -> Fleet:
    backend = BackendConfig(url=f"http://127.0.0.1:{server.port}/v1")
    # A stream that waits for a test has not broken off.
    config = replace(QUICK, timeouts=replace(QUICK.timeouts, between_tokens_s=20))
    return Fleet(models=(FleetModel(name=name, backends=(backend,)),), gateway=config)


@asynccontextmanager
async def running(server: FakeServer) -> AsyncIterator[World]:
    built: list[WatchedGateway] = []

    def build(fleet: Fleet) -> Gateway:
        built.append(WatchedGateway(fleet))
        return built[-1]

    world = World(CurrentGateway(build, fleet(server)), built)
    await world.current.start()
    try:
        yield world
    finally:
        await world.current.stop()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "_LOOK_S", 0.01)


def test_a_stream_survives_a_renewal_and_then_the_old_connections_close() -> None:
    async def work() -> None:
        slow = Slow()
        async with FakeServer(slow, well).running() as server, running(server) as world:
            reply = await world.ask("m", is_stream=True)
            assert not isinstance(reply.body, bytes)
            pieces = [await anext(reply.body)]
            await world.current.renew(fleet(server, "other"))
            assert world.current.fleet.names == ("other",)
            assert (await world.ask("other")).status == 200
            await asyncio.sleep(0.1)
            assert not world.built[0].is_stopped
            slow.may_go_on.set()
            pieces += [piece async for piece in reply.body]
            assert read_stream(b"".join(pieces))[0] == whole_text()
            await world.stopped(0)
            assert not world.built[1].is_stopped
            assert (await world.ask("other")).status == 200

    run(work())


def test_a_stream_that_nobody_reads_keeps_no_old_gateway() -> None:
    async def work() -> None:
        async with FakeServer(Slow()).running() as server, running(server) as world:
            reply = await world.ask("m", is_stream=True)
            assert not isinstance(reply.body, bytes)
            await reply.body.aclose()
            await world.current.renew(fleet(server))
            await world.stopped(0)

    run(work())


def test_a_fleet_with_a_mistake_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOESTRO_TEST_KEY", raising=False)

    async def work() -> None:
        async with FakeServer(well).running() as server, running(server) as world:
            backend = BackendConfig(url="http://127.0.0.1:1/v1", key="env:MOESTRO_TEST_KEY")
            wrong = Fleet(models=(FleetModel(name="other", backends=(backend,)),))
            with pytest.raises(ConfigError, match="MOESTRO_TEST_KEY"):
                await world.current.renew(wrong)
            assert world.current.fleet.names == ("m",)
            assert (await world.ask("m")).status == 200

    run(work())


def test_the_end_does_not_wait_for_what_is_under_way() -> None:
    async def work() -> Any:
        async with FakeServer(Slow()).running() as server, running(server) as world:
            reply = await world.ask("m", is_stream=True)
            await world.current.renew(fleet(server))
            await world.current.stop()
            assert not isinstance(reply.body, bytes)
            await reply.body.aclose()
            return [gateway.is_stopped for gateway in world.built]

    assert run(work()) == [True, True]


def test_it_tells_of_the_latest_fleet() -> None:
    async def work() -> None:
        async with FakeServer(well).running() as server, running(server) as world:
            await world.ask("m")
            assert world.current.view().models[0].num_requests == 1
            await world.current.renew(fleet(server, "other"))
            assert [model.name for model in world.current.view().models] == ["other"]
            assert world.current.chooser is world.built[1].chooser

    run(work())


@pytest.mark.parametrize("change", ["replaced", "moved"])
def test_a_new_configuration_blames_no_server_for_what_another_did(change: str) -> None:
    """Workers share what they know of servers, and a number in a file is none."""

    async def work() -> None:
        shared = Alone()
        around = Surroundings(shared=shared)
        async with FakeServer(reset).running() as bad, FakeServer(well).running() as good:
            backends = [
                BackendConfig(url=f"http://127.0.0.1:{server.port}/v1") for server in (bad, good)
            ]
            config = replace(
                QUICK, breaker=BreakerConfig(failures=1, open_s=60), retries=0, sticky_s=0
            )

            def fleet_of(*its: BackendConfig) -> Fleet:
                return Fleet(models=(FleetModel(name="m", backends=its),), gateway=config)

            current = CurrentGateway(
                lambda fleet: Gateway(fleet, None, around), fleet_of(*backends[:1])
            )
            world = World(current, [])
            await current.start()
            try:
                with pytest.raises(BackendError):
                    await world.ask("m")
                its = backends[1:] if change == "replaced" else backends[::-1]
                await current.renew(fleet_of(*its))
                assert (await world.ask("m")).status == 200
                states = {each.address: each.breaker for each in current.view().models[0].backends}
                assert states[backends[1].address] == "closed"
                if change == "moved":
                    assert states[backends[0].address] == "open"
            finally:
                await current.stop()

    run(work())
