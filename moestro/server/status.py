"""What is served and how it is: models, health, readiness, version.

Next: openapi.py, api/cards.py.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from moestro.api.backend import Backend
from moestro.api.cards import ModelCard
from moestro.api.stats import State, Stats
from moestro.errors import UnknownModelError
from moestro.server.openapi import (
    ANSWERS,
    ERRORS,
    OPEN_ERRORS,
    HealthAnswer,
    ModelAnswer,
    ModelsAnswer,
    ReadyAnswer,
    VersionAnswer,
)
from moestro.server.sse import JsonResponse

_RETRY_S = 1
# What takes requests: of a model that is elsewhere they hear if it cannot be reached.
_TAKES_REQUESTS: tuple[State, ...] = ("ready", "unreachable")


def routes(backend: Backend) -> APIRouter:
    """Build the routes."""
    paths = APIRouter()
    readiness = _Readiness()

    @paths.get("/v1/models", tags=["models"], responses=ERRORS | {200: {"model": ModelsAnswer}})
    async def list_models() -> Response:
        """List the models that can be asked."""
        models = [_write_card(card) for card in backend.cards()]
        return JsonResponse({"object": "list", "data": models})

    @paths.get(
        "/v1/models/{model_id:path}",
        tags=["models"],
        responses=ERRORS | {200: {"model": ModelAnswer}, 404: ANSWERS[404]},
    )
    async def show_model(model_id: str) -> Response:
        """Show one model."""
        cards = {card.id: card for card in backend.cards()}
        if model_id not in cards:
            known = ", ".join(cards)
            raise UnknownModelError(f"model {model_id[:80]!r} is not served here: choose {known}")
        return JsonResponse(_write_card(cards[model_id]))

    # Many a monitor asks for the head only.
    @paths.head("/health", include_in_schema=False)
    @paths.get("/health", tags=["server"], responses=OPEN_ERRORS | {200: {"model": HealthAnswer}})
    async def show_health() -> Response:
        """Say that the server is alive, whether or not a model is ready."""
        return JsonResponse({"status": "ok"})

    @paths.head("/ready", include_in_schema=False)
    @paths.get(
        "/ready",
        tags=["server"],
        responses=OPEN_ERRORS | {200: {"model": ReadyAnswer}, 503: {"model": ReadyAnswer}},
    )
    async def show_readiness() -> Response:
        """Say whether requests are taken: once no model here is loading any more, and from then on
        while one is there. Else with status 503, and what is missing.
        """
        stats = backend.stats()
        missing = readiness.find_missing(stats)
        models = [
            {"model": each.model, "state": each.state, "progress": each.progress} for each in stats
        ]
        status = "not ready" if missing else "ready"
        body = {"status": status, "missing": missing, "models": models}
        if not missing:
            return JsonResponse(body)
        return JsonResponse(body, 503, {"retry-after": str(_RETRY_S)})

    @paths.get("/version", tags=["server"], responses=ERRORS | {200: {"model": VersionAnswer}})
    async def show_version(request: Request) -> Response:
        """Say which version of Moestro this is."""
        return JsonResponse({"version": request.app.version})

    return paths


class _Readiness:
    """Whether a server has once been ready: a model that is added later then holds nothing up.

    Other machines' servers do not count: that they cannot be reached is told of each model and to
    each request, and stopping this server would not help.
    """

    def __init__(self) -> None:
        self._has_been_ready = False

    def find_missing(self, stats: Sequence[Stats]) -> str:
        """Say in words what is missing to take requests; nothing where they are taken."""
        takes_any = any(each.state in _TAKES_REQUESTS for each in stats)
        is_loading = any(each.state == "loading" for each in stats)
        self._has_been_ready |= takes_any and not is_loading
        if takes_any and self._has_been_ready:
            return ""
        states = [f"{each.model} is {each.state}" for each in stats if each.state != "ready"]
        return ", ".join(states) or "no model is served here"


def _write_card(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        "max_model_len": card.context_length,
        "fewest_experts": card.fewest_experts,
        "most_experts": card.most_experts,
        "has_budget": card.has_budget,
        "has_fim": card.has_fim,
        "has_chat_template": card.has_chat_template,
        "num_moe_layers": card.num_moe_layers,
        "num_experts": card.num_experts,
        "num_parameters": card.num_parameters,
        "num_active_parameters": card.num_active_parameters,
        "default_sampling": dict(card.default_sampling),
        "input_usd_per_mtok": card.input_usd_per_mtok,
        "output_usd_per_mtok": card.output_usd_per_mtok,
    }
