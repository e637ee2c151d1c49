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

# Lists, objects and fields take memory and time out of all proportion to their bytes.
_MOST_PARTS = 50_000
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}:'))
# Far from where anybody's recursion ends: what reads a body may itself be deep in calls.
_MOST_LEVELS = 100
_TOO_DEEP = f"the body nests too deeply, limit {_MOST_LEVELS} levels: flatten it"


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
        outline = _outline(body)
        if sum(map(outline.count, (b"[", b"{", b":"))) > _MOST_PARTS:
            raise HTTPException(
                400, f"the body has more than {_MOST_PARTS} lists, objects and fields: send less"
            )
        try:
            found = msgspec.json.decode(body)
        except RecursionError as error:
            raise HTTPException(400, _TOO_DEEP) from error
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"the body is not UTF-8: {error.reason}") from error
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from error
        if _nests_too_deeply(outline):
            raise HTTPException(400, _TOO_DEEP)
        return found


def _outline(body: bytes) -> bytes:
    """Return the brackets and colons of a body that stand outside of its texts.

    It may be cut where there are more than any body may have.
    """
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Of texts without brackets, and of what stands between two texts, nothing is left.
    marks = plain.translate(None, _NO_MARKS).replace(b'""', b"")
    return b"".join(marks.split(b'"', 4 * _MOST_PARTS + 4)[::2])


def _nests_too_deeply(outline: bytes) -> bool:
    outline = outline.replace(b":", b"")
    for _ in range(_MOST_LEVELS):
        outline = outline.replace(b"[]", b"").replace(b"{}", b"")
        if not outline:
            return False
    return True


def _is_json(content_type: str) -> bool:
    message = email.message.Message()
    message["content-type"] = content_type
    kind = message.get_content_type()
    return kind == "application/json" or (kind.startswith("application/") and kind[-5:] == "+json")
