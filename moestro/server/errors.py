"""What went wrong, as an HTTP status and OpenAI's error body: nowhere else is one turned into the
other.

Other dialects give a function of their own for paths below theirs. Knows no backend. Next: sse.py.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from moestro.errors import (
    BackendError,
    CapacityError,
    ConfigError,
    ContextLengthError,
    DataError,
    ForbiddenError,
    MoestroError,
    QuotaError,
    UnknownKeyError,
    UnknownModelError,
)

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"
SERVER = "server_error"
_CODES = {
    401: "invalid_api_key",
    404: "unknown_url",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    503: "unavailable",
}
# What a path calls the fields that backends know by their names in chats.
_OWN_NAMES: Mapping[str, Mapping[str, str]] = {
    "/v1/responses": {"messages": "input", "max_tokens": "max_output_tokens"}
}
_SHOWN_CHARACTERS = 60
_CLIENT_GONE_STATUS = 499


class ClientGone(Exception):
    """Whoever asked has closed the connection: nobody is left to tell."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a client is told of an error, whatever the dialect."""

    status: int
    message: str
    kind: str = INVALID
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return OpenAI's error body."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Return `Retry-After`, in whole seconds as HTTP wants it, where waiting helps."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


Dialect = Callable[[Problem], Any]


def describe(error: Exception, request_id: str = "") -> Problem:
    """Turn any error into what a client may know of it."""
    match error:
        case RequestValidationError():
            return _mistake(error.errors(), error.body)
        case HTTPException():
            return _refusal(error)
        case UnknownModelError():
            return Problem(status=404, message=str(error), code="model_not_found", param="model")
        case ConfigError() | DataError():
            is_long = isinstance(error, ContextLengthError)
            code = "context_length_exceeded" if is_long else None
            return Problem(status=400, message=str(error), code=code, param=error.param)
        case CapacityError():
            return Problem(
                status=429,
                message=str(error),
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=error.retry_after_s,
            )
        case QuotaError():
            # OpenAI's kind and code for a budget that is spent, which waiting a little cannot mend.
            return Problem(
                status=429,
                message=str(error),
                kind="insufficient_quota",
                code="insufficient_quota",
                retry_after_s=error.resets_in_s,
            )
        case UnknownKeyError():
            return Problem(status=401, message=str(error), code="invalid_api_key")
        case ForbiddenError():
            return Problem(status=403, message=str(error), code="not_allowed")
        case BackendError():
            return Problem(
                status=503,
                message=str(error),
                kind=SERVER,
                code="unavailable",
                retry_after_s=error.retry_after_s,
            )
    known_as = f"; its log has more under request {request_id}" if request_id else ""
    message = f"the server failed: this is a fault of its own{known_as}"
    return Problem(status=500, message=message, kind=SERVER, code="internal_error")


def install(app: FastAPI, dialects: Mapping[str, Dialect]) -> None:
    """Answer every error of an application; `dialects` by the beginning of their paths."""

    async def answer(request: Request, error: Exception) -> Response:
        request_id = getattr(request.state, "request_id", "")
        problem = describe(error, request_id)
        if problem.status == 500:
            log.error("request %s failed: %s", request_id, type(error).__name__)
        path = request.url.path
        own = _OWN_NAMES.get(path, {})
        problem = replace(problem, param=own.get(problem.param or "", problem.param))
        spoken = (say for start, say in dialects.items() if path.startswith(start))
        body = next(spoken, Problem.to_dict)(problem)
        headers = dict(getattr(error, "headers", None) or {}) | problem.headers()
        return Response(
            msgspec.json.encode(body), problem.status, headers, media_type="application/json"
        )

    async def forget(request: Request, error: Exception) -> Response:
        return Response(status_code=_CLIENT_GONE_STATUS)

    for kind in (RequestValidationError, HTTPException, MoestroError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(ClientGone, forget)


def _refusal(error: HTTPException) -> Problem:
    code = _CODES.get(error.status_code)
    messages = {
        404: "there is nothing at this path: /docs lists what there is",
        405: "this path does not take this method: /docs lists what it takes",
    }
    # Starlette's own words for these two are just their names.
    is_bare = error.detail in ("Not Found", "Method Not Allowed")
    message = messages.get(error.status_code, "") if is_bare else str(error.detail)
    kind = INVALID if error.status_code < 500 else SERVER
    return Problem(status=error.status_code, message=message, kind=kind, code=code)


def _mistake(errors: Sequence[Any], body: object) -> Problem:
    """Say the first mistake in one line: the field, its value, and what it should be."""
    places = [_find_place(error, body) for error in errors]
    # Of a field that may be several things, the one that came closest has the deepest place; but a
    # list is found too long only after what it holds was found right.
    closest = max(
        range(len(errors)),
        key=lambda number: (
            errors[number]["type"] == "too_long",
            len(places[number][0]),
            -number,
        ),
    )
    path, value = places[closest]
    first = errors[closest]
    param = _name(path)
    if first["type"] == "missing":
        missing = _name([*path, *first["loc"][1:][-1:]]) or "the body"
        message = f"{missing} is missing: send it"
        return Problem(status=400, message=message, param=missing)
    if first["type"] == "extra_forbidden":
        message = f"{param} is no field here: correct its name or leave it out"
        return Problem(status=400, message=message, param=param)
    same = [_expect(error) for error, place in zip(errors, places, strict=True) if place[0] == path]
    expected = " or ".join(dict.fromkeys(same))
    message = f"{param or 'the body'} is {_show(value)}: it should {expected}"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
    return Problem(status=400, message=message, param=param or None)


def _expect(error: Any) -> str:  # noqa: ANN401 (pydantic's dictionaries have no type)
    if error["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return "be an object"
    # Pydantic says "Input should be ...", or "List should have ...".
    expected = str(error["msg"]).partition(" should ")[2].replace(" after validation", "")
    return expected or "be another value"


def _find_place(error: Mapping[str, Any], body: object) -> tuple[list[str | int], object]:
    kind, *location = error["loc"]
    if kind == "body" or error["type"] == "missing":
        return _walk(body, location)
    return location, error["input"]


def _walk(body: object, location: Sequence[str | int]) -> tuple[list[str | int], object]:
    """Follow a place into the body as far as it is one: the rest names branches of a type."""
    path: list[str | int] = []
    found: Any = body
    for step in location:
        is_key = isinstance(found, Mapping) and step in found
        is_index = isinstance(found, list) and isinstance(step, int) and step < len(found)
        if is_key or is_index:
            found = found[step]
            path.append(step)
    return path, found


def _name(path: Sequence[str | int]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{_clip(step)}" for step in path)
    return "".join(steps).removeprefix(".")


def _show(value: object) -> str:
    if isinstance(value, str | list | Mapping) and len(value) > 1000:
        kind = {list: "list", str: "text"}.get(type(value), "object")
        return f"a {kind} of length {len(value)}"
    return _clip(msgspec.json.encode(value).decode())


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
