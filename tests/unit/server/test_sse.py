"""Server-sent events: their bytes, and a client that goes away at any moment."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import pytest
from starlette.types import Message

from moestro.server.errors import ClientGone
from moestro.server.sse import EventStream, encode_event
from moestro.server.watch import while_connected

SCOPE: dict[str, Any] = {"type": "http"}


def test_an_event_is_one_line_of_json_and_a_blank_one() -> None:
    assert encode_event({"text": "a\nb \u00e9"}) == 'data: {"text":"a\\nb \u00e9"}\n\n'.encode()
    assert encode_event({}, name="ping") == b"event: ping\ndata: {}\n\n"


class Client:
    """The other side of a response: hears it, may go away, may be slow."""

    def __init__(self, leaves_after: int | None = None, is_stuck: bool = False) -> None:
        self.heard: list[Message] = []
        self._leaves_after = leaves_after
        self._is_stuck = is_stuck
        self._gone = asyncio.Event()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.heard.append(message)
        if len(self.heard) == self._leaves_after:
            self._gone.set()
            if self._is_stuck:
                await asyncio.Event().wait()


class Events:
    """Endless events that know whether they were closed."""

    def __init__(self, num: int) -> None:
        self.num_made = 0
        self.is_closed = False
        self._num = num

    async def make(self) -> AsyncGenerator[bytes, None]:
        try:
            while self.num_made < self._num:
                self.num_made += 1
                yield b"data: x\n\n"
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


def stream(events: Events, make_client: Callable[[], Client]) -> Client:
    async def run() -> Client:
        client = make_client()
        response = EventStream(events.make(), {"x-moestro-model": "m"})
        await asyncio.wait_for(response(SCOPE, client.receive, client.send), 5)
        return client

    return asyncio.run(run())


def test_a_stream_ends_properly_and_is_not_to_be_stored() -> None:
    events = Events(3)
    start, *rest = stream(events, Client).heard
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-moestro-model"] == b"m"
    assert b"content-length" not in headers
    assert [each["body"] for each in rest] == [b"data: x\n\n"] * 3 + [b""]
    assert [each["more_body"] for each in rest] == [True] * 3 + [False]
    assert events.is_closed


@pytest.mark.parametrize("is_stuck", [False, True])
@pytest.mark.parametrize("leaves_after", [1, 2, 5])
def test_events_are_closed_when_the_client_leaves_even_in_the_middle_of_a_write(
    leaves_after: int, is_stuck: bool
) -> None:
    events = Events(10**9)
    client = stream(events, lambda: Client(leaves_after, is_stuck))
    assert events.is_closed or events.num_made == 0
    assert events.num_made < 100
    assert all(each.get("more_body", True) for each in client.heard)


def test_a_fault_while_streaming_is_not_swallowed() -> None:
    async def fail() -> AsyncGenerator[bytes, None]:
        yield b"data: x\n\n"
        raise KeyError("bug")

    async def run() -> None:
        client = Client()
        await EventStream(fail(), {})(SCOPE, client.receive, client.send)

    with pytest.raises(KeyError):
        asyncio.run(run())


def test_work_is_cancelled_for_a_client_that_leaves_and_finished_for_one_that_stays() -> None:
    async def run(stays: bool) -> tuple[str, bool]:
        was_cancelled = False

        async def work() -> str:
            nonlocal was_cancelled
            try:
                await asyncio.sleep(0.01 if stays else 60)
            except asyncio.CancelledError:
                was_cancelled = True
                raise
            return "done"

        client = Client(leaves_after=1)
        if not stays:
            await client.send({})
        try:
            return await while_connected(client.receive, work()), was_cancelled
        except ClientGone:
            return "gone", was_cancelled

    assert asyncio.run(run(stays=True)) == ("done", False)
    assert asyncio.run(run(stays=False)) == ("gone", True)


@pytest.mark.parametrize("num_turns", range(5))
def test_a_client_that_leaves_as_the_work_ends_cancels_nothing_later(num_turns: int) -> None:
    async def leave() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def work() -> None:
        for _ in range(num_turns):
            await asyncio.sleep(0)

    async def run() -> int:
        with suppress(ClientGone):
            await while_connected(leave, work())
        for _ in range(4):
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(run()) == 0
