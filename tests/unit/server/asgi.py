"""An application asked without a socket, and applications simple enough to see what guards do.

Knows no route of ours. Next: test_keys.py.
"""

import asyncio
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def ask(app: ASGIApp, method: str, path: str, **fields: Any) -> httpx.Response:
    """Send one request and return the whole answer."""
    return asyncio.run(ask_async(app, method, path, **fields))


async def ask_async(
    app: ASGIApp, method: str, path: str, *, address: str = "127.0.0.1", **fields: Any
) -> httpx.Response:
    """Send one request from an address and return the whole answer."""
    transport = httpx.ASGITransport(app, client=(address, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **fields)


async def say_key(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the name of the key that the guard found."""
    name = scope.get("state", {}).get("key_name", "nobody")
    await _say(send, name.encode())


async def say_size(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body to its end and answer with its size, or stop if the client goes away."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await _say(send, b"gone")
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    await _say(send, b"%d" % size)


async def run_raw(app: ASGIApp, scope: dict[str, Any], *incoming: Message) -> list[Message]:
    """Give an application these messages, then silence; return what it sends.

    Who has gone away stays away: a disconnect is given again and again.
    """
    sent: list[Message] = []
    waiting = list(incoming)

    async def receive() -> Message:
        if waiting:
            is_gone = waiting[0]["type"] == "http.disconnect"
            return waiting[0] if is_gone else waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("silence ended")

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "headers": []} | scope, receive, send)
    return sent


async def _say(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
