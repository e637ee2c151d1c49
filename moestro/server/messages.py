"""Anthropic's /v1/messages, and the count of a conversation's tokens.

Knows paths, not how conversations are read or answers told. Next: api/anthropic.py,
api/anthropic_answers.py, narration.py.
"""

import uuid
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from moestro.api.anthropic import CountRequest, MessagesRequest, read_conversation, read_messages
from moestro.api.anthropic_answers import MessageAnswer
from moestro.api.backend import Backend
from moestro.server.exchange import pick_model
from moestro.server.json_route import JsonRoute
from moestro.server.narration import narrate
from moestro.server.openapi import ANSWERS, stream_of


class AnthropicErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """Anthropic's error body."""

    type: Literal["error"]
    error: AnthropicErrorDetail


class MessageUsage(BaseModel):
    """What a message cost; `mean_experts` is the mean of routed experts per token."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens_details: dict[str, int]
    mean_experts: float | None


class MessageBody(BaseModel):
    """An answer; its blocks are text, thinking and tool use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """How many tokens a conversation has, as the model sees it."""

    input_tokens: int


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: answer | {"model": AnthropicError} for status, answer in ANSWERS.items()
} | {
    # Whoever refuses a head has not read for whom it is.
    431: ANSWERS[431]
}


def routes(backend: Backend) -> APIRouter:
    """Build the routes."""
    paths = APIRouter(route_class=JsonRoute, tags=["anthropic"])

    @paths.post(
        "/v1/messages",
        response_class=Response,
        responses=_ERRORS | {200: stream_of(MessageBody)},
    )
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation, whole or as server-sent events."""
        message_id = f"msg_{uuid.uuid4().hex}"
        return await narrate(
            request,
            backend,
            read_messages(body, pick_model(backend, body.model)),
            lambda started: MessageAnswer(message_id, started),
            is_stream=bool(body.stream),
        )

    @paths.post("/v1/messages/count_tokens", responses=_ERRORS)
    async def count_tokens(body: CountRequest) -> TokenCount:
        """Count the tokens of a conversation without answering it."""
        model = pick_model(backend, body.model)
        token_ids = await backend.tokenize(read_conversation(body, model))
        return TokenCount(input_tokens=len(token_ids))

    return paths
