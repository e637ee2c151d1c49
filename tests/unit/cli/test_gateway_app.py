"""Two workers of one host, put together as they are served: what one knows, the other one knows.

Next: test_bookkeeping.py.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from moestro.api.key_terms import KeyTerms
from moestro.api.record import Record
from moestro.api.record_view import DecisionFilter
from moestro.cli import gateway_app, scribe
from moestro.cli.gateway_app import Parts, build_gateway_app
from moestro.cli.keeper import Keeper
from moestro.cli.watches import Watches
from moestro.cli.worker import Plan
from moestro.gateway.fleet import BackendConfig, Fleet, FleetModel, PolicyConfig, Price
from moestro.policy.store import POLICY_FILE
from moestro.records.config import CacheConfig, RecordsConfig
from moestro.records.scribe import listen_for_workers
from moestro.records.shared import create_shared
from moestro.records.view import View
from moestro.server.config import ServerConfig
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_embeddings import embeds
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import QUICK, FakeServer, well
from tests.unit.server.asgi import ask_async

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


@dataclass
class PolicyWithoutFloor(ScriptedPolicy):
    evidence: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def shared() -> Iterator[Path]:
    path = create_shared(2)
    yield path
    path.unlink()


@asynccontextmanager
async def two_workers(
    tmp_path: Path, shared: Path, server: FakeServer, policy: PolicyConfig | None = None, **of: Any
) -> AsyncIterator[list[Parts]]:
    backend = BackendConfig(url=f"http://127.0.0.1:{server.port}/v1")
    price = Price(output_usd_per_mtok=1)
    models = tuple(
        FleetModel(name=name, backends=(backend,), price=price) for name in ("weak", "strong")
    )
    fleet = Fleet(models=models, gateway=QUICK, policy=policy)
    records = RecordsConfig(url=f"sqlite:///{tmp_path}/records.db", flush_s=0.02, **of)
    async with AsyncExitStack() as stack:
        ledger = stack.enter_context(listen_for_workers(tmp_path / "ledger"))
        keeper = Keeper("ledger", scribe.main, (ledger, records))
        keeper.start()
        stack.callback(keeper.end)
        workers = []
        for number in range(2):
            plan = Plan(
                number=number,
                fleet=fleet,
                records=records,
                server=ServerConfig(),
                shared=shared,
                ledger=tmp_path / "ledger",
                metrics=None,
            )
            parts = build_gateway_app(plan)
            stack.callback(parts.records.stop)
            await parts.gateway.start()
            stack.push_async_callback(parts.gateway.stop)
            workers.append(parts)
        yield workers


async def ask(worker: Parts, model: str = "weak", text: str = "say", **of: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **of}
    return await ask_async(worker.app, "POST", CHAT, json=body)


async def check_given_again(one: Parts, other: Parts, server: FakeServer, is_stream: bool) -> None:
    first = await ask(one, temperature=0, stream=is_stream)
    assert "x-moestro-cache" not in first.headers
    # Keeping takes a moment.
    again = first
    async with asyncio.timeout(20):
        while again.headers.get("x-moestro-cache") != "hit":
            again = await ask(other, temperature=0, stream=is_stream)
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-moestro-reason"] == "cache"
    num_asked = len(server.asked)
    assert (await ask(one, temperature=0, stream=is_stream)).content == first.content
    assert len(server.asked) == num_asked


def test_each_worker_shows_what_all_of_them_did(tmp_path: Path, shared: Path) -> None:
    async def work() -> None:
        async with (
            FakeServer(well).running() as server,
            two_workers(tmp_path, shared, server) as (one, other),
        ):
            for worker, model in ((one, "weak"), (one, "strong"), (other, "strong")):
                assert (await ask(worker, model)).status_code == 200
            assert (await ask(other, "none")).status_code == 404
            for worker in (one, other):
                found = (await ask_async(worker.app, "GET", "/ui/fleet")).json()["fleet"]
                assert (found["num_requests"], found["num_refused"]) == (3, 1)
                weak, strong = found["models"]
                assert (weak["num_requests"], strong["num_requests"]) == (1, 2)
                assert strong["share"] == pytest.approx(2 / 3)
                assert strong["backends"][0]["num_requests"] == 2
                assert strong["completion_tokens"] == 2 * weak["completion_tokens"] > 0
                assert strong["cost_usd"] == pytest.approx(2 * weak["cost_usd"])

    run(work())


def test_a_keys_budget_pays_for_embeddings_and_the_ledger_has_each(
    tmp_path: Path, shared: Path
) -> None:
    async def work() -> None:
        async with (
            FakeServer(embeds).running() as server,
            two_workers(tmp_path, shared, server) as (one, _),
        ):
            view = View(one.records)
            key = await view.add_key(KeyTerms(name="ali", budget_tokens=40))
            asked: dict[str, Any] = {
                "json": {"model": "weak", "input": "say"},
                "headers": {"authorization": f"Bearer {key}"},
            }
            async with asyncio.timeout(20):
                # Who comes without a key is let in until there is one.
                while (await ask(one)).status_code != 401:
                    await asyncio.sleep(0.02)
                statuses = [200]
                while statuses[-1] == 200:
                    answer = await ask_async(one.app, "POST", EMBEDDINGS, **asked)
                    statuses.append(answer.status_code)
                assert answer.json()["error"]["code"] == "insufficient_quota"
                found: list[Record] = []
                while len(found) < len(statuses) - 1:
                    page = await view.decisions(DecisionFilter(caller="ali"))
                    found = [each.record for each in page.decisions]
            last, *paid = found
            assert (last.outcome, last.path) == ("refused", EMBEDDINGS)
            assert {(each.prompt_tokens, each.completion_tokens) for each in paid} == {(7, 0)}
            # Seven tokens each, until not even as many as are expected are left.
            assert 2 <= len(paid) <= 5

    run(work())


def test_a_watch_that_fails_is_told_of(
    tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Watches):
        async def run(self) -> None:
            raise ValueError("out of order")

    async def work() -> None:
        async with (
            FakeServer(well).running() as server,
            two_workers(tmp_path, shared, server) as (one, _),
        ):
            one.live.watches = Failing()
            one.live.start()
            async with asyncio.timeout(20):
                while "not watched any more" not in caplog.text:
                    await asyncio.sleep(0.01)

    run(work())
    assert "out of order" in caplog.text


def test_an_answer_that_one_worker_got_is_given_again_by_the_other(
    tmp_path: Path, shared: Path
) -> None:
    async def work() -> None:
        cache = CacheConfig(enabled=True)
        async with (
            FakeServer(well).running() as server,
            two_workers(tmp_path, shared, server, cache=cache) as (one, other),
        ):
            for is_stream in (False, True):
                await check_given_again(one, other, server, is_stream)

    run(work())


def test_nothing_is_given_again_unless_the_configuration_says_so(
    tmp_path: Path, shared: Path
) -> None:
    async def work() -> int:
        async with (
            FakeServer(well).running() as server,
            two_workers(tmp_path, shared, server) as (one, _),
        ):
            for _ in range(3):
                assert (await ask(one, temperature=0)).status_code == 200
                await asyncio.sleep(0.05)
            return len(server.asked)

    assert run(work()) == 3


def test_a_conversation_stays_with_its_model_at_every_worker(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / POLICY_FILE).write_text("{}")
    monkeypatch.setattr(gateway_app, "load_policy", lambda _: PolicyWithoutFloor())

    async def work() -> list[tuple[str, str]]:
        policy = PolicyConfig(path=tmp_path)
        async with (
            FakeServer(well).running() as server,
            two_workers(tmp_path, shared, server, policy) as (one, other),
        ):
            answers = [await ask(one, "auto", "a hard one"), await ask(other, "auto", "a hard one")]
            return [
                (each.headers["x-moestro-model"], each.headers["x-moestro-reason"])
                for each in answers
            ]

    first, other = run(work())
    assert first[0] == other[0] == "strong"
    assert first[1] != other[1] == "conversation"
