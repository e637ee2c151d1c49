"""GET /docs: the OpenAPI document as one page of plain HTML, and /openapi.json itself.

The usual pages fetch a program from elsewhere; this one needs no network and no script, and can be
read from a terminal. Knows the document, not the routes. Next: openapi.py.
"""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from moestro.server.openapi import ERRORS, describe
from moestro.server.sse import JsonResponse

_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
_RANGES = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "minLength": "at least",
    "maxLength": "at most",
    "minItems": "at least",
    "maxItems": "at most",
}

Json = Mapping[str, Any]


def routes() -> APIRouter:
    """Build both routes."""
    paths = APIRouter(include_in_schema=False)

    # No coroutines: the first time takes a second, and no stream should stop for it.

    @paths.get("/docs", responses=ERRORS)
    def show_docs(request: Request) -> Response:
        """Show this server's interface to a person."""
        page = render(describe(request.app))
        return Response(page, headers=_HEADERS, media_type="text/html")

    @paths.get("/openapi.json", responses=ERRORS)
    def show_document(request: Request) -> Response:
        """Show this server's interface to a program."""
        return JsonResponse(describe(request.app))

    return paths


def render(document: Json) -> str:
    """Write an OpenAPI document as a page."""
    schemas = document.get("components", {}).get("schemas", {})
    info = document["info"]
    style = Path(__file__).with_name("docs.css").read_text(encoding="utf-8")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width">',
        f"<title>{escape(info['title'])}</title><style>{style}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info.get('description', ''))} For programs: <a href=openapi.json>",
        "openapi.json</a>.</p>",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(f"{method.upper()} {path}", operation)
    parts.append("<h1>Objects</h1>")
    for name, schema in schemas.items():
        parts += _object(name, schema)
    return "".join(parts)


def _operation(title: str, operation: Json) -> Iterator[str]:
    yield f"<h2><code>{escape(title)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        yield f"<p>Send {_type(body['schema'])}.</p>"
    yield "<table>"
    for status, answer in operation["responses"].items():
        kinds = answer.get("content", {})
        shown = " or ".join(_answer_type(kind, content) for kind, content in kinds.items())
        description = "" if status == "200" else escape(answer["description"])
        yield f"<tr><td><code>{status}</code><td>{shown}<td>{description}"
    yield "</table>"


def _answer_type(kind: str, content: Json) -> str:
    schema = content.get("schema", {})
    return _type(schema) if kind == "application/json" and schema else escape(kind)


def _object(name: str, schema: Json) -> Iterator[str]:
    yield f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2>'
    yield f"<p>{escape(schema.get('description', ''))}</p><table>"
    required = schema.get("required", ())
    for field, kind in schema.get("properties", {}).items():
        note = escape(kind.get("description", ""))
        must = "<b>required</b> " if field in required else ""
        yield f"<tr><td><code>{escape(field)}</code><td>{_type(kind)}<td>{must}{note}"
    yield "</table>"


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            choices = (_type(each) for each in schema[key] if each.get("type") != "null")
            return " or ".join(choices)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}{_range(schema)}"
    return f"{escape(schema.get('type', 'anything'))}{_range(schema)}"


def _range(schema: Json) -> str:
    # Whole numbers reach to 64 bits, which tells a reader nothing.
    found = [
        f"{sign} {schema[key]:g}"
        for key, sign in _RANGES.items()
        if key in schema and abs(schema[key]) < 2**62
    ]
    return escape(f", {' and '.join(found)}") if found else ""
