"""Requests to backends in the dialect that each speaks, and answers in OpenAI's words.

Next: upstream.py, anthropic.py.
"""

from moestro.gateway.attempts import Outgoing
from moestro.gateway.legs import Incoming
from moestro.gateway.upstream import Connections, Upstream


class WireSender:
    """Sends over one worker's connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def send(self, upstream: Upstream, outgoing: Outgoing) -> Incoming:
        """Return the head of the answer."""
        body = outgoing.body_for(upstream.model)
        return await self._connections.post(upstream, outgoing.asked.path, body)
