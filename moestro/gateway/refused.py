"""A backend's refusal of what a client sent, as the client gets to hear it: in its own dialect.

Next: gateway.py.
"""

from typing import Any

import msgspec

from moestro.api.anthropic_answers import error_body
from moestro.api.relay import Reply
from moestro.gateway.asked import ANTHROPICS
from moestro.gateway.legs import Leg
from moestro.gateway.trace import Trace

_MOST_SHOWN = 1000


def pass_refusal(leg: Leg, trace: Trace) -> Reply:
    """Return a refusal: as it came if it is in the client's form, without our key in any case."""
    upstream = leg.member.upstream
    body = upstream.conceal(leg.body)
    headers = trace.headers("application/json")
    said = _read(body)
    error = said.get("error")
    is_anthropics = trace.asked is not None and trace.asked.kind in ANTHROPICS
    if not isinstance(error, dict) or (is_anthropics and said.get("type") != "error"):
        told = error if isinstance(error, dict) else said
        message = told.get("message") or told.get("detail") or told.get("error")
        shown = message if isinstance(message, str) else f"status {leg.status}"
        shown = f"{leg.member.name} refused the request: {shown[:_MOST_SHOWN]}"
        problem = {
            "message": shown,
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        written = error_body(leg.status, shown) if is_anthropics else {"error": problem}
        body = msgspec.json.encode(written)
    return Reply(status=leg.status, headers=headers, body=body, spent=trace.spent)


def _read(body: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
