"""POST /v1/chat/completions: answer a conversation.

Next: exchange.py, api/openai_requests.py.
"""

from fastapi import APIRouter, Request, Response

from moestro.api.backend import Backend
from moestro.api.openai_answers import HttpAnswer
from moestro.api.openai_bodies import ChatBody
from moestro.api.openai_choices import ChatChoices, View
from moestro.api.openai_requests import find_echo, read_chat, read_usage_events
from moestro.server.exchange import build_head, pick_model, respond
from moestro.server.json_route import JsonRoute
from moestro.server.openapi import ANSWERS, ChatAnswer, stream_of


def routes(backend: Backend) -> APIRouter:
    """Build the route."""
    paths = APIRouter(route_class=JsonRoute)

    @paths.post(
        "/v1/chat/completions",
        tags=["generation"],
        response_class=Response,
        responses=ANSWERS | {200: stream_of(ChatAnswer)},
    )
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation, or ask for tools to be called."""
        asked = read_chat(body, pick_model(backend, body.model))
        view = View(
            has_logprobs=bool(body.logprobs),
            has_xray=bool(body.xray),
            echo=find_echo(asked) if body.echo else "",
        )
        answer = HttpAnswer(
            build_head("chatcmpl"),
            ChatChoices(view),
            choices_per_prompt=asked.options.num_choices,
            usage_events=read_usage_events(body),
        )
        return await respond(request, backend, [asked], answer, is_stream=bool(body.stream))

    return paths
