"""Calls passed on as bytes, before any route sees them: body in, relay, answer out as it comes.

Knows no JSON. What the relay does not take goes on to the routes. Next: api/relay.py, app.py.
"""

import logging
from contextlib import aclosing
from types import SimpleNamespace

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moestro.api.relay import ASKER, Asker, Call, Relay, Reply
from moestro.errors import MoestroError
from moestro.server.access import IS_LOGGED
from moestro.server.errors import ClientGone, describe
from moestro.server.keys import KEY_NAME
from moestro.server.limits import GENERATED_TOKENS
from moestro.server.refusal import refuse
from moestro.server.watch import while_connected

log = logging.getLogger(__name__)

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
)


class RelayRoutes:
    """Stands before an application and answers what can be relayed."""

    def __init__(self, app: ASGIApp, relay: Relay) -> None:
        self._app = app
        self._relay = relay
        # What the metrics look for to name a path.
        self._routes = {path: SimpleNamespace(path=path) for path in PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] == "http":
            ASKER.set(_describe_asker(scope))
        is_call = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PATHS
        if not is_call:
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if not headers.get("content-type", "").startswith("application/json"):
            # The routes know other spellings, and refuse the rest.
            await self._app(scope, receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            return
        scope["route"] = self._routes[scope["path"]]
        state = scope.setdefault("state", {})
        call = Call(
            path=scope["path"],
            body=body,
            request_id=state.get("request_id", ""),
            caller=state.get(KEY_NAME),
            headers=headers,
        )
        try:
            is_taken = await while_connected(receive, self._answer(call, scope, send))
        except ClientGone:
            return
        if not is_taken:
            await self._app(scope, _replay(body, receive), send)

    async def _answer(self, call: Call, scope: Scope, send: Send) -> bool:
        state = scope["state"]
        try:
            reply = await self._relay.relay(call)
        except MoestroError as error:
            await _refuse(error, call, scope, send)
            return True
        except Exception as error:
            log.error("request %s failed: %s", call.request_id, type(error).__name__)
            await _refuse(error, call, scope, send)
            raise
        if reply is None:
            return False
        state[IS_LOGGED] = True
        try:
            await _send_reply(reply, send)
        finally:
            state[GENERATED_TOKENS] = reply.spent.completion_tokens
        return True


async def _refuse(error: Exception, call: Call, scope: Scope, send: Send) -> None:
    scope["state"][IS_LOGGED] = True
    await refuse(describe(error, call.request_id), scope, send)


def _describe_asker(scope: Scope) -> Asker:
    state = scope.get("state", {})
    return Asker(caller=state.get(KEY_NAME), request_id=state.get("request_id", ""))


async def _send_reply(reply: Reply, send: Send) -> None:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in reply.headers.items()]
    body = reply.body
    if isinstance(body, bytes):
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return
    async with aclosing(body):
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        async for piece in body:
            # Waits while the client reads too slowly, and so does the backend then.
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole body, None if the client went away; its size is the guards' business."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        whole: bytes = message.get("body", b"")
        return whole
    pieces = []
    while message["type"] == "http.request":
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
        message = await receive()
    return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives the body once more, then what comes."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if not is_given:
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
