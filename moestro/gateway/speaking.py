"""Requests to backends in the dialect that each speaks, and answers in the words of who asks.

Next: upstream.py, anthropic.py.
"""

import msgspec

from moestro.errors import ConfigError
from moestro.gateway.anthropic import write_messages
from moestro.gateway.anthropic_answers import TranslatedIncoming
from moestro.gateway.attempts import Outgoing
from moestro.gateway.legs import Incoming
from moestro.gateway.upstream import Connections, Upstream

_MESSAGES = "/v1/messages"


class WireSender:
    """Sends over one worker's connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def check(self, upstream: Upstream, outgoing: Outgoing) -> None:
        """Raise ConfigError if a backend's dialect cannot say what is asked."""
        if not _is_native(upstream, outgoing):
            _translate(upstream, outgoing)

    async def send(self, upstream: Upstream, outgoing: Outgoing) -> Incoming:
        """Return the head of the answer."""
        asked = outgoing.asked
        if _is_native(upstream, outgoing):
            body = outgoing.body_for(upstream.model)
            headers = {**asked.headers, **outgoing.headers}
            return await self._connections.post(
                upstream, asked.path, body, headers, is_repeatable=asked.is_repeatable
            )
        incoming = await self._connections.post(
            upstream,
            _MESSAGES,
            _translate(upstream, outgoing),
            outgoing.headers,
            is_repeatable=asked.is_repeatable,
        )
        return TranslatedIncoming(incoming, wants_usage=asked.wants_usage)


def _is_native(upstream: Upstream, outgoing: Outgoing) -> bool:
    kind = outgoing.asked.kind
    if outgoing.asked.is_free:
        # Many servers of either dialect have these paths, ours among them; the others say so.
        return True
    if kind == "embeddings":
        return upstream.dialect == "openai" and not upstream.is_local
    return (upstream.dialect == "anthropic") == (kind == "messages")


def _translate(upstream: Upstream, outgoing: Outgoing) -> bytes:
    asked = outgoing.asked
    if asked.kind == "embeddings":
        raise ConfigError(f"{upstream.name} makes no embeddings: name a model that does")
    if asked.kind != "chat":
        raise ConfigError(
            f"{upstream.name} cannot be asked at {asked.path}: use /v1/chat/completions"
        )
    said = msgspec.json.decode(outgoing.body_for(upstream.model))
    return msgspec.json.encode(write_messages(said, upstream.model))
