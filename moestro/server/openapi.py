"""What the server says of itself in /openapi.json: answers, errors, and which statuses there are.

These models describe and check nothing at run time; a test compares them with real answers. Next:
docs.py.
"""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from moestro.api.stats import State

_STATUSES = {
    400: "The request is wrong: its message says where.",
    401: "No API key, or an unknown one.",
    403: "The key does not allow this.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not sent as JSON, or packed.",
    429: "Too much at once: `Retry-After` says when to come again.",
    431: "The headers are too long.",
    500: "A fault of the server.",
    503: "The model is loading, restarting or gone.",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


class UsageAnswer(BaseModel):
    """What a request cost; `mean_experts` is the mean of routed experts per token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]
    mean_experts: float | None


class VisitAnswer(BaseModel):
    """An expert that a token visited, and the weight of what it said."""

    expert: int
    weight: float


class XrayToken(BaseModel):
    """A token with its experts, by layer."""

    text: str
    num_experts: float | None
    experts: list[list[VisitAnswer]]


class ChoiceAnswer(BaseModel):
    """What all choices have; `xray` only where it was asked for."""

    index: int
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: str | int | None
    xray: list[XrayToken] | None = None


class CompletionChoiceAnswer(ChoiceAnswer):
    """One completion."""

    text: str


class ChatChoiceAnswer(ChoiceAnswer):
    """One answer to a conversation."""

    message: dict[str, Any]


class CompletionAnswer(BaseModel):
    """The completions of all prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceAnswer]
    usage: UsageAnswer


class ChatAnswer(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceAnswer]
    usage: UsageAnswer


class TokensAnswer(BaseModel):
    """Token ids of a prompt."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class TextAnswer(BaseModel):
    """Text of token ids."""

    prompt: str


class ModelAnswer(BaseModel):
    """A model: what one can ask of it, and the shape of an x-ray."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    fewest_experts: int
    most_experts: int
    has_budget: bool
    has_fim: bool
    has_chat_template: bool
    num_moe_layers: int
    num_experts: int
    num_parameters: int
    num_active_parameters: int
    default_sampling: dict[str, float]
    input_usd_per_mtok: float | None
    output_usd_per_mtok: float | None


class ModelsAnswer(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class HealthAnswer(BaseModel):
    """The server is alive."""

    status: Literal["ok"]


class ReadyModel(BaseModel):
    """How far a model is; `progress` goes from 0 to 1 while it loads."""

    model: str
    state: State
    progress: float = Field(ge=0, le=1)


class ReadyAnswer(BaseModel):
    """Whether requests are taken, and if not, what is missing."""

    status: Literal["ready", "not ready"]
    missing: str
    models: list[ReadyModel]


class VersionAnswer(BaseModel):
    """The version of Moestro."""

    version: str


ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in _STATUSES.items()
}
# Where there is no body, nothing can be wrong with one.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: ANSWERS[status] for status in (401, 429, 431, 500)
}
# Of what anybody may ask without a limit.
OPEN_ERRORS: dict[int | str, dict[str, Any]] = {status: ANSWERS[status] for status in (431, 500)}


def stream_of(answer: type[BaseModel]) -> dict[str, Any]:
    """Describe an answer that comes whole as JSON, or as events that end with [DONE]."""
    return {"model": answer, "content": {"text/event-stream": {}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, without what FastAPI adds of validation errors of its own."""
    if app.openapi_schema is None:
        app.openapi_schema = _describe(app)
    return app.openapi_schema


def _describe(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    schemas = document.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document
