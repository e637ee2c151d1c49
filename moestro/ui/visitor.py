"""Who looks at a page of the gateway, and what they may see and change.

A key's name is in the request's state where keys are asked for (server/keys.py); without keys
everybody sees what is not a key. Next: fleet_pages.py.
"""

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import HTTPException, Request

from moestro.api.record_view import RecordView

_KEY_HEADERS = ("authorization", "x-api-key")


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """`name` is the key's, None where no key was asked for."""

    name: str | None
    is_admin: bool

    @property
    def sees_only(self) -> str | None:
        """Whose records they may see: their own, or None for everybody's."""
        return None if self.is_admin else self.name


async def find_visitor(
    request: Request, records: RecordView | None, admins: Collection[str]
) -> Visitor:
    """Return who sent a request; an admin by configuration or by their key's terms."""
    name = request.scope.get("state", {}).get("key_name") or None
    if name is None or name in admins or records is None:
        return Visitor(name=name, is_admin=name is not None and name in admins)
    keys = [each for each in await records.keys() if each.terms.name == name]
    is_admin = any(each.terms.is_admin and each.is_usable for each in keys)
    return Visitor(name=name, is_admin=is_admin)


def check_admin(visitor: Visitor) -> None:
    """Refuse whoever is no admin."""
    if not visitor.is_admin:
        raise HTTPException(403, "keys are shown to admins only: use an admin's API key")


def check_origin(request: Request) -> None:
    """Refuse a change that another site's page may have sent.

    A form of another site has no key header, and a script of one is told on by the browser.
    """
    if not any(name in request.headers for name in _KEY_HEADERS):
        raise HTTPException(403, "a change needs the key in a header: send it with the request")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "content-type is not JSON: send application/json")
    if not _is_same_origin(request):
        raise HTTPException(403, "this change comes from another site: use the page of this server")


def _is_same_origin(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
