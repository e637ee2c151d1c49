"""The watch over traffic as it is wired: two workers' gateways, records on disk, answers over HTTP.

Used by floor.py. The policy's guard for unfamiliar prompts is off, so that only the watch can help.
"""

import asyncio
import json
import logging
import math
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Thread

from aiohttp import web

from moestro.api.relay import Call
from moestro.cli.gateway_app import Parts, build_gateway_app
from moestro.cli.worker import Plan
from moestro.gateway.config import GatewayConfig, ProbeConfig
from moestro.gateway.fleet import BackendConfig, Fleet, FleetModel, PolicyConfig
from moestro.policy.policy import Policy
from moestro.policy.store import save_policy
from moestro.records.config import RecordsConfig
from moestro.records.database import Database
from moestro.records.scribe import listen_for_workers, serve_workers
from moestro.records.shared import create_shared
from moestro.records.writer import DatabaseWriter
from moestro.server.config import ServerConfig

NUM_WORKERS, NUM_CLIENTS = 2, 8


def fallback_after(policy: Policy, prompts: Sequence[str]) -> tuple[float, float]:
    """Serve prompts for `auto`; return after how many all is the strongest's, infinite if never.

    And the share that the weak models answered of those before.
    """
    logging.getLogger("moestro").setLevel(logging.CRITICAL)
    return asyncio.run(_serve(policy, prompts))


async def _serve(policy: Policy, prompts: Sequence[str]) -> tuple[float, float]:
    encoder = replace(policy.estimator.encoder, far=1e9)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_policy(replace(policy, estimator=replace(policy.estimator, encoder=encoder)), folder)
        async with _upstream() as url, _workers(folder, url, policy.models) as workers:
            answers = await _ask_each(workers, prompts)
    used = [place for place, (_, reason) in enumerate(answers, 1) if reason != "traffic shifted"]
    weak = [model != policy.strongest for model, _ in answers[: len(used)]]
    return (used[-1] if len(used) < len(answers) else math.inf), sum(weak) / len(weak)


async def _ask_each(workers: Sequence[Parts], prompts: Sequence[str]) -> list[tuple[str, str]]:
    answers: list[tuple[str, str]] = []
    waiting, numbers = iter(prompts), count()

    async def client() -> None:
        for prompt in waiting:
            number = next(numbers)
            body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
            call = Call(
                path="/v1/chat/completions", body=json.dumps(body).encode(), request_id=f"r{number}"
            )
            reply = await workers[number % len(workers)].gateway.relay(call)
            assert reply is not None
            answers.append((reply.headers["x-moestro-model"], reply.headers["x-moestro-reason"]))

    await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
    return answers


@asynccontextmanager
async def _workers(folder: Path, url: str, names: Sequence[str]) -> AsyncIterator[list[Parts]]:
    backend = BackendConfig(url=url)
    fleet = Fleet(
        models=tuple(FleetModel(name=name, backends=(backend,)) for name in names),
        policy=PolicyConfig(path=folder),
        # Nobody who asks twice is to be answered by the first decision.
        gateway=GatewayConfig(sticky_s=0, probe=ProbeConfig(every_s=0)),
    )
    records = RecordsConfig(url=f"sqlite:///{folder}/records.db")
    shared = create_shared(NUM_WORKERS)
    async with AsyncExitStack() as stack:
        stack.callback(shared.unlink)
        ledger = stack.enter_context(_scribe(folder / "ledger", records))
        workers = []
        for number in range(NUM_WORKERS):
            plan = Plan(
                number=number,
                fleet=fleet,
                records=records,
                server=ServerConfig(),
                shared=shared,
                ledger=ledger,
                metrics=None,
            )
            parts = build_gateway_app(plan)
            stack.callback(parts.records.stop)
            await parts.gateway.start()
            stack.push_async_callback(parts.gateway.stop)
            parts.live.start()
            stack.callback(parts.live.stop)
            workers.append(parts)
        yield workers


@contextmanager
def _scribe(address: Path, records: RecordsConfig) -> Iterator[Path]:
    told, end = socket.socketpair()
    with told, end, listen_for_workers(address) as listener:
        writer = DatabaseWriter(Database(records))
        thread = Thread(target=serve_workers, args=(listener, writer, (told,)))
        thread.start()
        try:
            yield address
        finally:
            end.send(b"end")
            thread.join()


@asynccontextmanager
async def _upstream() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        choice = {"message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}
        return web.json_response({"model": asked["model"], "choices": [choice]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
