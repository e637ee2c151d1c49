"""Real servers on loopback that answer as a model would, or in one of the ways a model should not.

The model is deterministic: its answer is a row of numbered words, and it goes on behind as many of
them as it is given. Next: test_failover.py.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from moestro.api.record import Record
from moestro.api.relay import Call, Reply
from moestro.gateway.choosing import Policy
from moestro.gateway.config import (
    BreakerConfig,
    GatewayConfig,
    ProbeConfig,
    QueueConfig,
    TimeoutConfig,
)
from moestro.gateway.fleet import BackendConfig, Fleet, FleetModel, Price
from moestro.gateway.gateway import Gateway, Surroundings

WORDS = 12
QUICK = GatewayConfig(
    timeouts=TimeoutConfig(connect_s=2, first_token_s=2, between_tokens_s=0.5, whole_s=20),
    backoff_s=0.01,
    probe=ProbeConfig(every_s=0),
    queue=QueueConfig(max_wait_s=5),
    breaker=BreakerConfig(failures=5, open_s=0.2),
)


@dataclass
class Asking:
    """One request that a server got."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    data: bytes = b""
    is_gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def head(self, status: int = 200, *headers: str, kind: str = "application/json") -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", *headers]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def whole(self, body: object, status: int = 200, *headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(status, f"content-length: {len(data)}", *headers)
        await self.send(data)

    async def events(self, events: Sequence[bytes], *, pause_s: float = 0) -> None:
        await self.head(200, "transfer-encoding: chunked", kind="text/event-stream")
        for event in events:
            await self.chunk(event)
            await asyncio.sleep(pause_s)

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        self.writer.transport.abort()


Behavior = Callable[[Asking], Awaitable[None]]


class FakeServer:
    """A server that does with each request what the next of its behaviors says; the last stays."""

    def __init__(self, *behaviors: Behavior) -> None:
        self.asked: list[Asking] = []
        self._behaviors = list(behaviors)
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(re.split(r":\s*", line.lower(), maxsplit=1) for line in head[1:] if line)
        for line in head[1:]:
            if line.lower().startswith(("authorization", "x-api-key")):
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asking = Asking(head[0].split()[1], headers, json.loads(body or b"{}"), writer, body)
        self.asked.append(asking)
        behavior = self._behaviors.pop(0) if len(self._behaviors) > 1 else self._behaviors[0]
        await behavior(asking)
        return not writer.transport.is_closing()


def word(number: int) -> str:
    return f"w{number} "


def whole_text(num: int = WORDS) -> str:
    return "".join(map(word, range(num)))


def num_told(body: dict[str, Any]) -> int:
    """Return how many words of its answer a request holds already."""
    prompt = body.get("prompt")
    text = prompt if isinstance(prompt, str) else ""
    if body.get("continue_final_message"):
        assert body["messages"][-1]["role"] == "assistant"
        assert body["add_generation_prompt"] is False
        text = body["messages"][-1]["content"]
    return len(re.findall(r"w\d+ ", text))


def events_of(body: dict[str, Any], name: str = "real", num: int = WORDS) -> list[bytes]:
    """Return the events by which a model answers a request."""
    begin, is_chat = num_told(body), "messages" in body
    limit = body.get("max_tokens")
    end = num if limit is None else min(num, begin + limit)
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    base = {"id": f"id-{name}", "object": kind, "created": 7, "model": body["model"]}
    said: list[dict[str, Any]] = []
    if is_chat:
        said.append({"index": 0, "delta": {"role": "assistant", "content": ""}})
    for number in range(begin, end):
        text = {"delta": {"content": word(number)}} if is_chat else {"text": word(number)}
        said.append({"index": 0, **text, "finish_reason": None})
    finish = "stop" if end == num else "length"
    nothing = {"delta": {}} if is_chat else {"text": ""}
    said.append({"index": 0, **nothing, "finish_reason": finish})
    events = [{**base, "choices": [choice]} for choice in said]
    if (body.get("stream_options") or {}).get("include_usage"):
        count = {"prompt_tokens": 5 + begin, "completion_tokens": end - begin}
        count["total_tokens"] = sum(count.values())
        events.append({**base, "choices": [], "usage": count})
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [
        b"data: [DONE]\n\n"
    ]


def answer_of(body: dict[str, Any], text: str | None = None, model: str = "") -> dict[str, Any]:
    said = whole_text() if text is None else text
    choice = {"index": 0, "finish_reason": "stop"}
    choice |= {"message": {"role": "assistant", "content": said}} if "messages" in body else {}
    choice |= {} if "messages" in body else {"text": said}
    usage = {"prompt_tokens": 5, "completion_tokens": WORDS, "total_tokens": 5 + WORDS}
    model = model or body["model"]
    return {"id": "a", "object": "x", "model": model, "choices": [choice], "usage": usage}


async def well(asking: Asking) -> None:
    """Answer as one should."""
    if not asking.body.get("stream"):
        await asking.whole(answer_of(asking.body))
        return
    await asking.events(events_of(asking.body))
    await asking.end()


def breaks(after: int, how: Callable[[Asking], Awaitable[None]]) -> Behavior:
    """Stream so many events, then do something else."""

    async def behave(asking: Asking) -> None:
        await asking.events(events_of(asking.body, "broken")[:after])
        # A reset overtakes what was sent just before it.
        await asyncio.sleep(0.05)
        await how(asking)

    return behave


async def reset(asking: Asking) -> None:
    asking.reset()


async def end_early(asking: Asking) -> None:
    await asking.end()


async def stall(asking: Asking) -> None:
    await asyncio.sleep(60)


async def endless(asking: Asking) -> None:
    """Begin a stream that says nothing more and ends when nobody listens."""
    try:
        await asking.events(events_of(asking.body)[:3])
        while not asking.writer.transport.is_closing():
            await asking.chunk(b": still here\n\n")
            await asyncio.sleep(0.01)
    finally:
        asking.is_gone.set()


def replies(status: int, body: object = b"no", *headers: str) -> Behavior:
    async def behave(asking: Asking) -> None:
        await asking.whole(body, status, *headers)

    return behave


def raw(data: bytes) -> Behavior:
    async def behave(asking: Asking) -> None:
        await asking.send(data)
        asking.writer.close()

    return behave


@dataclass
class Running:
    """A gateway that runs, the servers of its models, and the records of what it relayed."""

    gateway: Gateway
    servers: dict[str, list[FakeServer]]
    records: list[Record]

    async def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> Reply:
        headers = fields.pop("headers", {})
        caller = fields.pop("caller", None)
        is_audit = fields.pop("is_audit", False)
        call = Call(
            path=path,
            body=json.dumps(question(path) | fields).encode(),
            request_id="r",
            caller=caller,
            headers=headers,
            is_audit=is_audit,
        )
        reply = await self.gateway.relay(call)
        assert reply is not None
        return reply

    async def stream(self, path: str = "/v1/chat/completions", **fields: Any) -> bytes:
        reply = await self.ask(path, stream=True, **fields)
        assert not isinstance(reply.body, bytes)
        return b"".join([piece async for piece in reply.body])


def question(path: str) -> dict[str, Any]:
    if path == "/v1/completions":
        return {"model": "m", "prompt": "say "}
    return {"model": "m", "messages": [{"role": "user", "content": "say"}]}


@asynccontextmanager
async def gateway_over(
    behaviors: dict[str, Sequence[Behavior | Sequence[Behavior]]],
    config: GatewayConfig = QUICK,
    *,
    policy: Policy | None = None,
    around: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Run a gateway over models, each with one server per behavior or row of behaviors."""
    async with AsyncExitStack() as stack:
        servers: dict[str, list[FakeServer]] = {}
        for model, rows in behaviors.items():
            steps = [[row] if callable(row) else row for row in rows]
            servers[model] = [
                await stack.enter_async_context(FakeServer(*each).running()) for each in steps
            ]
        models = tuple(
            FleetModel(
                name=model,
                backends=tuple(
                    BackendConfig(**{"url": f"http://127.0.0.1:{each.port}/v1", **settings})
                    for each in its
                ),
                price=Price(input_usd_per_mtok=1, output_usd_per_mtok=2),
            )
            for model, its in servers.items()
        )
        records: list[Record] = []
        fleet = Fleet(models=models, gateway=config)
        surroundings = Surroundings(listeners=(records.append,), **(around or {}))
        gateway = Gateway(fleet, policy, surroundings)
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        yield Running(gateway, servers, records)


def read_stream(data: bytes) -> tuple[str, list[dict[str, Any]]]:
    """Return the text that a stream's events make, and the events."""
    assert data.endswith(b"\n\n")
    events = data.split(b"\n\n")[:-1]
    said = [
        json.loads(event.removeprefix(b"data: "))
        for event in events
        if not event.startswith(b":") and event != b"data: [DONE]"
    ]
    pieces = [
        choice["text"] if "text" in choice else choice.get("delta", {}).get("content") or ""
        for event in said
        for choice in event.get("choices", ())
    ]
    return "".join(pieces), said
