"""JSON in: a body becomes plain values, or one line that says why not.

Stricter than Python's own parser: no NaN, no lone surrogates, no bottomless nesting. Knows no
fields. Next: errors.py for what becomes of a wrong field.
"""

import email.message
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

# Each takes memory and time out of all proportion to its two bytes; a text may hold many, too.
_MOST_CONTAINERS = 200_000


class JsonRoute(APIRoute):
    """A route whose body is JSON and says so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that reads bodies as `_JsonRequest` does."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


class _JsonRequest(Request):
    async def body(self) -> bytes:
        # A web page from elsewhere may send any other type without asking: it must not reach us.
        if self.method == "POST" and not _is_json(self.headers.get("content-type", "")):
            shown = self.headers.get("content-type", "missing")[:60]
            raise HTTPException(415, f"content-type is {shown}: send application/json")
        return await super().body()

    async def json(self) -> Any:  # noqa: ANN401 (whatever a caller sends)
        body = await self.body()
        num = body.count(b"[") + body.count(b"{")
        if num > _MOST_CONTAINERS:
            raise HTTPException(
                400, f"the body has {num} brackets, limit {_MOST_CONTAINERS}: send less at once"
            )
        try:
            return msgspec.json.decode(body)
        except RecursionError as error:
            raise HTTPException(400, "the body nests too deeply: flatten it") from error
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"the body is not UTF-8: {error.reason}") from error
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from error


def _is_json(content_type: str) -> bool:
    message = email.message.Message()
    message["content-type"] = content_type
    kind = message.get_content_type()
    return kind == "application/json" or (kind.startswith("application/") and kind[-5:] == "+json")
