"""A request refused before any application sees it: an error's body at once, in its path's dialect.

Knows no reasons. Next: keys.py, limits.py, bodies.py.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from moestro.api import anthropic_answers
from moestro.server.errors import Dialect, Problem

Headers = Sequence[tuple[bytes, bytes]]

CLOSE = (b"connection", b"close")
# How long the rest of a refused body is read and thrown away.
_LINGER_S = 2.0


def _anthropic(problem: Problem) -> dict[str, Any]:
    return anthropic_answers.error_body(problem.status, problem.message)


# Who asks in these words, by the beginning of the path; all others ask in OpenAI's.
DIALECTS: Mapping[str, Dialect] = {"/v1/messages": _anthropic}


async def refuse(problem: Problem, scope: Scope, send: Send, headers: Headers = ()) -> None:
    """Answer with a problem."""
    await _send_problem(problem, scope, send, headers, more_body=False)


async def refuse_and_drain(
    problem: Problem, scope: Scope, receive: Receive, send: Send, headers: Headers = ()
) -> None:
    """Answer while the body is still on its way, then close the connection.

    What comes for a moment more is thrown away: a connection that is closed with bytes unread is
    reset, and many a client would never read its answer.
    """
    await _send_problem(problem, scope, send, [CLOSE, *headers], more_body=True)
    try:
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_problem(
    problem: Problem, scope: Scope, send: Send, headers: Headers, *, more_body: bool
) -> None:
    spoken = (say for start, say in DIALECTS.items() if scope["path"].startswith(start))
    body = msgspec.json.encode(next(spoken, Problem.to_dict)(problem))
    own = [(name.encode(), value.encode()) for name, value in problem.headers().items()]
    own += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    start = {"type": "http.response.start", "status": problem.status, "headers": [*own, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": more_body})
