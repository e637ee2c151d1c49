"""A backend's refusal of what a client sent, as the client gets to hear it: OpenAI's error body.

Next: gateway.py.
"""

from typing import Any

import msgspec

from moestro.api.relay import Reply
from moestro.gateway.legs import Leg
from moestro.gateway.trace import Trace

_MOST_SHOWN = 1000


def pass_refusal(leg: Leg, trace: Trace) -> Reply:
    """Return a refusal: as it came if it is in OpenAI's form, without our key in any case."""
    upstream = leg.member.upstream
    body = upstream.conceal(leg.body)
    headers = trace.headers("application/json")
    said = _read(body)
    if not isinstance(said.get("error"), dict):
        message = said.get("message") or said.get("detail") or said.get("error")
        shown = message if isinstance(message, str) else f"status {leg.status}"
        problem = {
            "message": f"{leg.member.name} refused the request: {shown[:_MOST_SHOWN]}",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        body = msgspec.json.encode({"error": problem})
    return Reply(status=leg.status, headers=headers, body=body, spent=trace.spent)


def _read(body: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
