"""The feeds behind a gateway's pages: fleet, policy, ledger and keys.

The document is that of pages.py. Knows views only, not who fills them. Next: decisions.py,
visitor.py.
"""

import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from moestro import settings
from moestro.api.fleet_view import FleetWatch
from moestro.api.key_terms import KeyTerms
from moestro.api.policy_view import PolicyWatch
from moestro.api.record import Outcome
from moestro.api.record_view import RecordView, UsageRow
from moestro.errors import StorageError
from moestro.ui.decisions import PAGE_ROWS, Search, find_page, write_table
from moestro.ui.visitor import Visitor, check_admin, check_origin, find_visitor

_FEED_HEADERS = {"cache-control": "no-store"}
_USAGE_DAYS = 30
_MOST_DAYS = 366
# A greater number than that no database has for a row.
_MOST_ROWS = 2**63 - 1


def mount_fleet(
    app: FastAPI,
    fleet: FleetWatch,
    *,
    policy: PolicyWatch | None = None,
    records: RecordView | None = None,
    admins: Collection[str] = (),
) -> None:
    """Add a gateway's feeds to a server; `admins` are names of keys that may change keys.

    Keys that the records call an admin's may too. Call `pages.mount` with `is_gateway=True`.
    """
    feeds = _Feeds(fleet, policy, records, admins)
    paths: dict[str, Callable[..., Awaitable[Response]]] = {
        "/ui/fleet": feeds.fleet,
        "/ui/policy": feeds.policy,
        "/ui/ledger": feeds.ledger,
        "/ui/ledger.csv": feeds.table,
        "/ui/usage": feeds.usage,
        "/ui/keys": feeds.keys,
    }
    for path, feed in paths.items():
        app.add_api_route(path, feed, methods=["GET"], include_in_schema=False)
    for path, change in (("/ui/keys", feeds.add_key), ("/ui/keys/revoke", feeds.revoke_key)):
        app.add_api_route(path, change, methods=["POST"], include_in_schema=False)


def read_search(
    key: str | None = None,
    asked: str | None = None,
    model: str | None = None,
    outcome: Outcome | None = None,
    reason: Annotated[str | None, Query(max_length=200)] = None,
    status: int | None = None,
    since: float | None = None,
) -> Search:
    """Return what a request for decisions is about."""
    return Search(
        caller=key or None,
        asked=asked or None,
        model=model or None,
        outcome=outcome,
        reason=reason or None,
        status=status,
        since=since,
    )


class _Feeds:
    """One method per feed."""

    def __init__(
        self,
        fleet: FleetWatch,
        policy: PolicyWatch | None,
        records: RecordView | None,
        admins: Collection[str],
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._records = records
        self._admins = frozenset(admins)

    async def fleet(self) -> Response:
        """Tell how each model and backend is, and how keeping records goes."""
        health = None if self._records is None else asdict(self._records.health())
        return _json({"now": time.time(), "fleet": asdict(self._fleet.view()), "records": health})

    async def policy(self) -> Response:
        """Tell what the policy promises, and what share of `auto` went to which model."""
        found = None if self._policy is None else self._policy.view()
        view = self._fleet.view()
        live = {model.name: model.num_auto for model in view.models if model.is_auto}
        body = {"now": time.time(), "live": live, "since": view.since}
        return _json({**body, "policy": None if found is None else asdict(found)})

    async def ledger(
        self,
        request: Request,
        search: Annotated[Search, Depends(read_search)],
        before: Annotated[int | None, Query(ge=0, le=_MOST_ROWS)] = None,
        limit: int = PAGE_ROWS,
    ) -> Response:
        """Tell recent decisions, newest first; a key that is no admin's sees its own."""
        if self._records is None:
            return _json({"now": time.time(), "is_kept": False, "decisions": [], "before": None})
        with _readable():
            visitor = await self._visitor(request)
            search = _within(search, visitor)
            page = await find_page(self._records, search, before=before, limit=limit)
        own = visitor.sees_only
        return _json({"now": time.time(), "is_kept": True, "only": own, **page})

    async def table(
        self, request: Request, search: Annotated[Search, Depends(read_search)]
    ) -> Response:
        """Send decisions as CSV."""
        records = self._kept()
        with _readable():
            search = _within(search, await self._visitor(request))
        headers = {**_FEED_HEADERS, "content-disposition": 'attachment; filename="ledger.csv"'}
        lines = write_table(records, search)
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    async def usage(
        self,
        request: Request,
        key: str | None = None,
        model: str | None = None,
        days: Annotated[int, Query(ge=1, le=_MOST_DAYS)] = 1,
    ) -> Response:
        """Tell what was spent in the last days, today among them, and what always-strong costs."""
        records = self._kept()
        with _readable():
            caller = (await self._visitor(request)).sees_only or key or None
            rows = await records.usage(since=_day(days - 1), caller=caller)
        return _json(_totals([row for row in rows if not model or row.model == model]))

    async def keys(self, request: Request) -> Response:
        """Tell all keys and their usage to an admin."""
        records = self._kept()
        with _readable():
            check_admin(await self._visitor(request))
            keys = await records.keys()
            usage = await records.usage(since=_day(_USAGE_DAYS - 1))
        return _json(
            {
                "now": time.time(),
                "days": [_day(age) for age in range(_USAGE_DAYS - 1, -1, -1)],
                "models": [model.name for model in self._fleet.view().models],
                "keys": [asdict(key) for key in keys],
                "usage": [asdict(row) for row in usage],
            }
        )

    async def add_key(self, request: Request) -> Response:
        """Make a key for an admin; the answer is the only place that ever shows it."""
        records = await self._changeable(request)
        given = {name: value for name, value in (await _body(request)).items() if value is not None}
        terms = settings.build(KeyTerms, given)
        with _readable():
            key = await records.add_key(terms)
        return _json({"name": terms.name, "key": key})

    async def revoke_key(self, request: Request) -> Response:
        """End a key for an admin."""
        records = await self._changeable(request)
        name = (await _body(request)).get("name")
        if not isinstance(name, str) or not name:
            raise HTTPException(400, "name is missing: name the key to revoke")
        with _readable():
            await records.revoke_key(name)
        return _json({"name": name})

    async def _changeable(self, request: Request) -> RecordView:
        check_origin(request)
        records = self._kept()
        with _readable():
            check_admin(await self._visitor(request))
        return records

    async def _visitor(self, request: Request) -> Visitor:
        return await find_visitor(request, self._records, self._admins)

    def _kept(self) -> RecordView:
        if self._records is None:
            raise HTTPException(404, "this gateway keeps no records: add [records] to fleet.toml")
        return self._records


def _within(search: Search, visitor: Visitor) -> Search:
    only = visitor.sees_only
    return search if only is None else replace(search, caller=only)


def _totals(rows: Sequence[UsageRow]) -> dict[str, Any]:
    names = (
        "num_requests", "num_failed", "prompt_tokens", "cached_tokens", "completion_tokens",
        "wasted_tokens", "cost_usd", "compared_cost_usd", "strongest_cost_usd",
    )  # fmt: skip
    return {name: sum(getattr(row, name) for row in rows) for name in names}


def _day(age: int) -> str:
    return (datetime.now(UTC) - timedelta(days=age)).strftime("%Y-%m-%d")


async def _body(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON: send an object") from error
    if not isinstance(found, dict):
        raise HTTPException(400, "the body is not an object: send its fields in braces")
    return found


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        message = f"the records cannot be reached: {error}"
        raise HTTPException(503, message, headers={"retry-after": "2"}) from error


def _json(content: dict[str, Any]) -> Response:
    return JSONResponse(content, headers=_FEED_HEADERS)
