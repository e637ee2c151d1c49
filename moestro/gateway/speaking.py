"""Requests to backends in the dialect that each speaks, and answers in the words of who asks.

Next: upstream.py, anthropic.py.
"""

import msgspec

from moestro.gateway.anthropic import write_messages
from moestro.gateway.anthropic_answers import TranslatedIncoming
from moestro.gateway.attempts import Outgoing
from moestro.gateway.faults import Fault
from moestro.gateway.legs import Incoming
from moestro.gateway.upstream import Connections, Upstream

_MESSAGES = "/v1/messages"


class WireSender:
    """Sends over one worker's connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def send(self, upstream: Upstream, outgoing: Outgoing) -> Incoming:
        """Return the head of the answer."""
        asked = outgoing.asked
        body = outgoing.body_for(upstream.model)
        is_anthropic = upstream.dialect == "anthropic"
        if is_anthropic == (asked.kind == "messages"):
            return await self._connections.post(upstream, asked.path, body, outgoing.headers)
        if asked.kind != "chat":
            message = f"{upstream.name} cannot be asked at {asked.path}: use /v1/chat/completions"
            raise Fault("denied", message, has_begun=False)
        said = msgspec.json.decode(body)
        written = msgspec.json.encode(write_messages(said, upstream.model))
        incoming = await self._connections.post(upstream, _MESSAGES, written, outgoing.headers)
        return TranslatedIncoming(incoming, wants_usage=asked.wants_usage)
