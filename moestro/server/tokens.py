"""POST /tokenize and /detokenize: text to token ids and back, with vLLM's fields.

Next: exchange.py, api/openai_bodies.py.
"""

from fastapi import APIRouter, Response

from moestro.api.backend import Backend
from moestro.api.chat import CompletionRequest, Request
from moestro.api.openai_bodies import DetokenizeBody, TokenizeChatBody, TokenizeTextBody
from moestro.api.openai_requests import read_conversation
from moestro.server.exchange import pick_model
from moestro.server.json_route import JsonRoute
from moestro.server.openapi import ANSWERS, TextAnswer, TokensAnswer
from moestro.server.sse import JsonResponse


def routes(backend: Backend) -> APIRouter:
    """Build both routes."""
    paths = APIRouter(route_class=JsonRoute, tags=["tokens"])

    @paths.post(
        "/tokenize", response_class=Response, responses=ANSWERS | {200: {"model": TokensAnswer}}
    )
    async def tokenize(body: TokenizeTextBody | TokenizeChatBody) -> Response:
        """Turn a prompt, or messages, into the token ids that the model would get."""
        model = pick_model(backend, body.model)
        asked: Request
        if isinstance(body, TokenizeTextBody):
            asked = CompletionRequest(
                model=model,
                prompt=body.prompt,
                has_special_tokens=body.add_special_tokens is not False,
                splits_special_tokens=body.split_special_tokens is not False,
            )
        else:
            asked = read_conversation(body, model)
        tokens = await backend.tokenize(asked)
        lengths = {card.id: card.context_length for card in backend.cards()}
        texts = await backend.show_tokens(model, tokens) if body.return_token_strs else None
        return JsonResponse(
            {
                "count": len(tokens),
                "max_model_len": lengths.get(model),
                "tokens": tokens,
                "token_strs": texts,
            }
        )

    @paths.post(
        "/detokenize", response_class=Response, responses=ANSWERS | {200: {"model": TextAnswer}}
    )
    async def detokenize(body: DetokenizeBody) -> Response:
        """Turn token ids into text."""
        text = await backend.detokenize(pick_model(backend, body.model), body.tokens)
        return JsonResponse({"prompt": text})

    return paths
