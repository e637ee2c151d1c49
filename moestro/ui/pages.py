"""The web pages: one document for all of them, and the two feeds behind experts and server.

The page sends its requests to the public API like any client. Next: assets.py, watched.py, and
fleet_pages.py for a gateway's own feeds.
"""

from dataclasses import asdict, fields
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from moestro.api.backend import Backend
from moestro.api.cards import ModelCard
from moestro.api.stats import Stats
from moestro.errors import UnknownModelError
from moestro.ui.assets import HEADERS, Asset, read_assets, read_page
from moestro.ui.recent import Recent

PAGES = ("/", "/experts", "/server")
FLEET_PAGES = ("/fleet", "/policy", "/ledger", "/keys")
ASSETS = "/ui/assets/"
# The feeds tell who uses the machine and how much, so they ask for the key; the files tell nothing.
OPEN_PATHS = (*PAGES, *FLEET_PAGES, ASSETS + "*")

_FEED_HEADERS = {"cache-control": "no-store"}
_LIGHT_FIELDS = tuple(field.name for field in fields(Stats) if field.name != "experts")


def mount(app: FastAPI, backend: Backend, recent: Recent, *, is_gateway: bool = False) -> None:
    """Add the pages and their feeds to a server; a `Watched` backend fills `recent`.

    A gateway has pages of its own, over the feeds of `fleet_pages.mount_fleet`.
    """
    assets = read_assets()

    async def page(request: Request) -> Response:
        return _send(request, read_page(request.scope.get("root_path", ""), is_gateway))

    async def asset(request: Request, name: str) -> Response:
        if name not in assets:
            raise HTTPException(404, f"no page asset is called {name[:80]!r}")
        return _send(request, assets[name])

    async def state(since: int = 0) -> Response:
        return JSONResponse(_state(backend, recent, since), headers=_FEED_HEADERS)

    async def experts(model: str) -> Response:
        return JSONResponse(_experts(backend, model), headers=_FEED_HEADERS)

    for path in (*PAGES, *FLEET_PAGES) if is_gateway else PAGES:
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)
    app.add_api_route(ASSETS + "{name}", asset, methods=["GET"], include_in_schema=False)
    app.add_api_route("/ui/state", state, methods=["GET"], include_in_schema=False)
    app.add_api_route("/ui/experts", experts, methods=["GET"], include_in_schema=False)


def _send(request: Request, asset: Asset) -> Response:
    headers = HEADERS | {"etag": asset.etag}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.kind, headers=headers)


def _state(backend: Backend, recent: Recent, since: int) -> dict[str, Any]:
    stats = {each.model: each for each in backend.stats()}
    models = [_model(card, stats.get(card.id), recent) for card in backend.cards()]
    return {"models": models, "recent": recent.to_dict(since)}


def _model(card: ModelCard, stats: Stats | None, recent: Recent) -> dict[str, Any]:
    light = None
    if stats is not None:
        light = {name: getattr(stats, name) for name in _LIGHT_FIELDS}
        light |= {"mean_experts": stats.experts.mean_experts}
    return {"card": asdict(card), "stats": light, "first_token": recent.first_token(card.id)}


def _experts(backend: Backend, model: str) -> dict[str, Any]:
    for stats in backend.stats():
        if stats.model == model:
            return asdict(stats.experts)
    raise UnknownModelError(f"model {model[:80]!r} is not served here: choose one of the page's")
