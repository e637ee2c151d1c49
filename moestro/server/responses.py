"""OpenAI's /v1/responses, of which nothing is kept.

Knows the path, not how input is read or answers told. Next: api/responses.py,
api/responses_answers.py, narration.py.
"""

import time
import uuid
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from moestro.api.backend import Backend
from moestro.api.responses import ResponsesRequest, read_responses
from moestro.api.responses_answers import Identity, ResponseAnswer
from moestro.server.exchange import pick_model
from moestro.server.json_route import JsonRoute
from moestro.server.narration import narrate
from moestro.server.openapi import ANSWERS, stream_of


class ResponseUsage(BaseModel):
    """What a response cost; `mean_experts` is the mean of routed experts per token."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int
    mean_experts: float | None


class ResponseBody(BaseModel):
    """An answer; its items are messages, reasoning and function calls. It repeats its request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage
    store: Literal[False]


def routes(backend: Backend) -> APIRouter:
    """Build the route."""
    paths = APIRouter(route_class=JsonRoute, tags=["openai"])

    @paths.post(
        "/v1/responses",
        response_class=Response,
        responses=ANSWERS | {200: stream_of(ResponseBody)},
    )
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation, whole or as server-sent events."""
        identity = Identity(name=uuid.uuid4().hex, created=int(time.time()))
        return await narrate(
            request,
            backend,
            read_responses(body, pick_model(backend, body.model)),
            lambda started: ResponseAnswer(identity, body, started),
            is_stream=bool(body.stream),
        )

    return paths
