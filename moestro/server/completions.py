"""POST /v1/completions: go on from a text, or from several at once.

Next: exchange.py, api/openai_requests.py.
"""

from fastapi import APIRouter, Request, Response

from moestro.api.backend import Backend
from moestro.api.openai_answers import HttpAnswer
from moestro.api.openai_bodies import CompletionBody
from moestro.api.openai_choices import CompletionChoices, View
from moestro.api.openai_requests import read_completions, read_usage_events
from moestro.server.exchange import build_head, pick_model, respond
from moestro.server.json_route import JsonRoute
from moestro.server.openapi import ANSWERS, CompletionAnswer, stream_of


def routes(backend: Backend) -> APIRouter:
    """Build the route."""
    paths = APIRouter(route_class=JsonRoute)

    @paths.post(
        "/v1/completions",
        tags=["generation"],
        response_class=Response,
        responses=ANSWERS | {200: stream_of(CompletionAnswer)},
    )
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Complete a prompt, or each of several prompts."""
        asked = read_completions(body, pick_model(backend, body.model))
        view = View(has_logprobs=body.logprobs is not None, has_xray=bool(body.xray))
        answer = HttpAnswer(
            build_head("cmpl"),
            CompletionChoices(view),
            choices_per_prompt=asked[0].options.num_choices,
            usage_events=read_usage_events(body),
        )
        return await respond(request, backend, asked, answer, is_stream=bool(body.stream))

    return paths
