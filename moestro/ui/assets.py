"""The pages' files, read once: HTML, styles and scripts that lie beside this module.

Knows what may be served and under which policy, not what the scripts do. Next: index.html.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

KINDS = {".css": "text/css", ".js": "text/javascript"}

# Nothing but our own files, nothing inline, and no way to turn a string into markup.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Files of one release must not meet those of another after an update.
    "cache-control": "no-cache",
}

_FOLDER = Path(__file__).parent
_BASE = "{{ base }}"
_KIND = "{{ kind }}"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file as it is sent."""

    content: bytes
    kind: str
    etag: str


def read_assets() -> Mapping[str, Asset]:
    """Read all scripts and styles, by file name."""
    paths = (path for path in sorted(_FOLDER.iterdir()) if path.suffix in KINDS)
    return {path.name: _asset(path.read_bytes(), KINDS[path.suffix]) for path in paths}


def read_page(root_path: str, is_gateway: bool = False) -> Asset:
    """Read the page; its addresses begin at `root_path`, where a proxy may have put the server.

    It says whether the server is a gateway, so that no link leads to a page that is not there.
    """
    text = (_FOLDER / "index.html").read_text(encoding="utf-8")
    base = escape(root_path.rstrip("/") + "/", quote=True)
    text = text.replace(_KIND, "gateway" if is_gateway else "model").replace(_BASE, base)
    return _asset(text.encode(), "text/html")


def _asset(content: bytes, kind: str) -> Asset:
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Asset(content=content, kind=f"{kind}; charset=utf-8", etag=f'"{digest}"')
