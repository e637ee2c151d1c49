"""When a fleet is ready, and what is told of one that is not. Next: test_patience.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from moestro.api.cards import ModelCard
from moestro.errors import BackendError, CapacityError
from moestro.gateway.current import CurrentGateway
from moestro.gateway.fleet import BackendConfig, Fleet, FleetModel, LocalServer
from moestro.gateway.gateway import Gateway
from moestro.gateway.translated import Translated
from moestro.server.app import build_app
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    QUICK,
    Asking,
    FakeServer,
    gateway_over,
    replies,
    well,
)

there = replies(200, {"data": []})
DEAD = "http://127.0.0.1:9/v1"


@dataclass
class Local:
    """A local model's server, which loads until it is told that it has."""

    is_loaded: bool = False

    async def __call__(self, asking: Asking) -> None:
        if self.is_loaded:
            await (asking.whole({}) if asking.path == "/ready" else well(asking))
        elif asking.path == "/v1/models":
            await asking.whole({"data": []})
        else:
            await asking.whole({}, 503, "retry-after: 1")


def local(name: str, server: FakeServer) -> tuple[FleetModel, LocalServer]:
    card = ModelCard(id=name, created=1, context_length=99)
    url = f"http://127.0.0.1:{server.port}/v1"
    return FleetModel(name=name, path=Path(name)), LocalServer(url=url, card=card)


def remote(name: str, *urls: str) -> FleetModel:
    return FleetModel(name=name, backends=tuple(BackendConfig(url=url) for url in urls))


def fleet(*models: FleetModel | tuple[FleetModel, LocalServer], every_s: float = 0.02) -> Fleet:
    config = replace(QUICK, probe=replace(QUICK.probe, every_s=every_s, timeout_s=2))
    pairs = [each if isinstance(each, tuple) else (each, None) for each in models]
    servers = {model.name: server for model, server in pairs if server is not None}
    return Fleet(models=tuple(model for model, _ in pairs), gateway=config).with_local(servers)


@dataclass
class Site:
    """A gateway behind a server, asked by a load balancer."""

    client: httpx.AsyncClient
    current: CurrentGateway

    async def ready(self) -> tuple[int, str, list[str]]:
        answer = await self.client.get("/ready")
        told = answer.json()
        return answer.status_code, told["missing"], [each["state"] for each in told["models"]]

    async def until(self, is_so: Callable[[tuple[int, str, list[str]]], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_so(await self.ready()):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def site(first: Fleet) -> AsyncIterator[Site]:
    current = CurrentGateway(Gateway, first)
    backend = Translated(current)
    transport = httpx.ASGITransport(build_app(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
        await backend.start()
        yield Site(client, current)
        await backend.stop(0)


def test_a_fleet_is_not_ready_while_a_local_model_loads() -> None:
    async def work() -> None:
        loads = Local()
        async with FakeServer(loads).running() as ours, FakeServer(there).running() as other:
            url = f"http://127.0.0.1:{other.port}/v1"
            async with site(fleet(local("a", ours), remote("b", url))) as each:
                await each.until(lambda told: told[2] == ["loading", "ready"])
                assert (await each.ready())[:2] == (503, "a is loading")
                loads.is_loaded = True
                await each.until(lambda told: told == (200, "", ["ready", "ready"]))
                # It begins anew: others answer meanwhile.
                loads.is_loaded = False
                await each.until(lambda told: told == (200, "", ["restarting", "ready"]))

    run(work())


def test_a_model_whose_backends_cannot_be_reached_says_so_and_holds_nothing_up() -> None:
    async def work() -> None:
        async with site(fleet(remote("a", DEAD), remote("b", DEAD, DEAD))) as each:
            for _ in range(3):
                assert await each.ready() == (200, "", ["unreachable"] * 2)
                await asyncio.sleep(0.05)
        async with FakeServer(there).running() as server:
            url = f"http://127.0.0.1:{server.port}/v1"
            async with site(fleet(remote("a", DEAD), remote("b", DEAD, url))) as each:
                await each.until(lambda told: told == (200, "", ["unreachable", "ready"]))

    run(work())


def test_a_model_added_by_a_new_configuration_does_not_take_a_fleet_out_of_service() -> None:
    async def work() -> None:
        async with FakeServer(Local()).running() as ours, FakeServer(there).running() as other:
            model = remote("b", f"http://127.0.0.1:{other.port}/v1")
            async with site(fleet(model)) as each:
                await each.until(lambda told: told == (200, "", ["ready"]))
                await each.current.renew(fleet(local("a", ours), model))
                # At once, too: what was known of the server is known still.
                assert await each.ready() == (200, "", ["loading", "ready"])

    run(work())


def test_a_model_with_an_open_breaker_is_unreachable_until_the_next_request_may_try() -> None:
    async def work() -> None:
        async with FakeServer(replies(500)).running() as server:
            model = remote("a", f"http://127.0.0.1:{server.port}/v1")
            async with site(fleet(model, every_s=0)) as each:
                # Nobody asks: it is taken for there.
                assert (await each.ready())[2] == ["ready"]
                body = {"model": "a", "prompt": "x"}
                for _ in range(2):
                    await each.client.post("/v1/completions", json=body)
                assert (await each.ready())[2] == ["unreachable"]
                await each.until(lambda told: told[2] == ["ready"])

    run(work())


def test_a_local_model_is_asked_whether_it_has_loaded_even_without_probes() -> None:
    async def work() -> int:
        loads = Local(is_loaded=True)
        async with (
            FakeServer(loads).running() as ours,
            site(fleet(local("a", ours), every_s=0)) as each,
        ):
            await each.until(lambda told: told[0] == 200)
            await asyncio.sleep(0.1)
            return len(ours.asked)

    assert run(work()) == 1


@pytest.mark.parametrize("every_s", [0, 0.02])
def test_a_model_that_loads_is_answered_for_with_503_and_when_to_ask_again(every_s: float) -> None:
    async def work() -> list[httpx.Response]:
        async with (
            FakeServer(Local()).running() as ours,
            site(fleet(local("a", ours), every_s=every_s)) as each,
        ):
            body = {"model": "a", "prompt": "x"}
            return [await each.client.post("/v1/completions", json=body) for _ in range(2)]

    for answer in run(work()):
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        error = answer.json()["error"]
        assert error["message"].startswith("model a is loading: try again in 1 s")
        assert error["code"] == "unavailable"


def test_too_much_asked_is_another_thing_than_not_ready() -> None:
    async def work(status: int) -> list[Exception]:
        behavior = replies(status, {}, "retry-after: 7")
        raised = []
        async with gateway_over({"m": [behavior]}) as running:
            for _ in range(2):
                with pytest.raises((BackendError, CapacityError)) as caught:
                    await running.ask()
                raised.append(caught.value)
        return raised

    assert [type(each) for each in run(work(429))] == [CapacityError] * 2
    assert [type(each) for each in run(work(529))] == [CapacityError] * 2
    unready = run(work(503))
    assert [type(each) for each in unready] == [BackendError] * 2
    assert str(unready[0]) == "m/0 is not ready: try again in 7 s"
    assert all(6 < each.retry_after_s <= 7 for each in unready)
