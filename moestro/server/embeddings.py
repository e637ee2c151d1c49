"""POST /v1/embeddings where models write text: a clear no. A gateway's relay answers before it.

Next: relay.py.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from moestro.api.backend import Backend
from moestro.errors import ConfigError, UnknownModelError
from moestro.server.exchange import pick_model
from moestro.server.json_route import JsonRoute
from moestro.server.openapi import ANSWERS


class EmbeddingsBody(BaseModel):
    """Texts to embed; what else is sent goes to the backend as it came."""

    model: str | None = None
    input: Any = Field(description="A text, token ids, or a list of either.")


class EmbeddingAnswer(BaseModel):
    """One text's embedding: numbers, or as `encoding_format` says their bytes in base64."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """The embeddings of all texts."""

    object: str
    model: str
    data: list[EmbeddingAnswer]
    usage: dict[str, Any]


def routes(backend: Backend) -> APIRouter:
    """Build the route."""
    paths = APIRouter(route_class=JsonRoute, tags=["openai"])

    @paths.post("/v1/embeddings", responses=ANSWERS | {200: {"model": EmbeddingsAnswer}})
    async def embed(body: EmbeddingsBody) -> None:
        """Embed texts: a gateway passes them to the model's server, a checkpoint makes none."""
        model = pick_model(backend, body.model)
        known = [card.id for card in backend.cards()]
        if model not in known:
            raise UnknownModelError(
                f"model {model[:100]!r} is not served here: choose {', '.join(known)}"
            )
        raise ConfigError(
            f"{model[:100]} makes no embeddings: ask a model of another server that does",
            param="model",
        )

    return paths
