"""API keys: who may ask, by name. No key is kept in clear, and none ever reaches a log.

A key is configured by its hash or by the name of the environment variable that holds it. This
makes one and prints it with its hash:

    python -c "import hashlib, secrets; key = secrets.token_urlsafe(32);
    print(key, 'sha256:' + hashlib.sha256(key.encode()).hexdigest())"

A plain SHA-256 is enough because such keys are long and random: nobody can try them all. Knows
nothing of limits. Next: refusal.py, limits.py.
"""

import hashlib
import hmac
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from moestro import settings
from moestro.errors import ConfigError
from moestro.server.errors import Problem
from moestro.server.refusal import refuse

KEY_NAME = "key_name"
OPEN_PATHS = ("/health", "/ready")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_POLICY_VIOLATION = 1008


@dataclass(frozen=True, kw_only=True)
class KeysConfig:
    """Whom the server lets in; without keys everybody."""

    allowed: dict[str, str] = field(default_factory=dict)
    """Keys by the name of who holds them: `sha256:` and the hash, or `env:` and a variable."""


class Keys:
    """The keys that are allowed; none at all lets everybody in."""

    def __init__(self, config: KeysConfig) -> None:
        self._hashes = {name: _hash_of(name, text) for name, text in config.allowed.items()}
        names: dict[bytes, str] = {}
        for name, digest in self._hashes.items():
            other = names.setdefault(digest, name)
            if other != name:
                raise ConfigError(
                    f"keys.allowed.{name} is the same key as {other}: give each a key of its own"
                )

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def find_name(self, presented: Sequence[bytes]) -> str | None:
        """Return whose key is among those presented; how long it takes tells nothing."""
        found = None
        for key in presented:
            digest = hashlib.sha256(key).digest()
            for name, known in self._hashes.items():
                if hmac.compare_digest(digest, known):
                    found = name
        return found

    def has_expired(self, presented: Sequence[bytes]) -> bool:
        """Tell that none has: they hold as long as they are configured."""
        return False


class KeyRing(Protocol):
    """Whoever knows keys: these, or a database's."""

    def __bool__(self) -> bool:
        """Tell whether a key is asked for at all."""

    def find_name(self, presented: Sequence[bytes]) -> str | None:
        """Return whose key is among those presented."""

    def has_expired(self, presented: Sequence[bytes]) -> bool:
        """Tell whether one that opens nothing did so once, and was not revoked."""


class KeyGuard:
    """Lets requests with a known key through, with its name in `scope["state"]["key_name"]`.

    A path in `open_paths` needs none; one that ends in "/*" stands for all below it.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, open_paths: Collection[str] = OPEN_PATHS
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = frozenset(open_paths)
        self._open_folders = tuple(path[:-1] for path in open_paths if path.endswith("/*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or answer 401."""
        if not self._keys or scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        presented = _presented_keys(scope)
        name = self._keys.find_name(presented)
        if name is not None:
            scope.setdefault("state", {})[KEY_NAME] = name
        elif not self._is_open(scope["path"]):
            await _refuse(scope, send, self._complain(presented))
            return
        await self._app(scope, receive, send)

    def _complain(self, presented: Sequence[bytes]) -> str:
        how = "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
        if not presented:
            return f"no API key given: {how}"
        if self._keys.has_expired(presented):
            # Nothing that its holder does not know: whoever else sends it has the key.
            return "this API key has expired: ask whoever gave it to you to extend it"
        return f"this API key is not known here: {how}"

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(self._open_folders)


def _hash_of(name: str, text: str) -> bytes:
    match = _HASH.fullmatch(text)
    if match is not None:
        return bytes.fromhex(match[1])
    kind, _, variable = text.partition(":")
    if kind == "env" and variable:
        return hashlib.sha256(settings.secret(variable).encode()).digest()
    # The text is not shown: it may be the key itself.
    raise ConfigError(
        f"keys.allowed.{name} is neither a hash nor the name of a variable:"
        ' write "sha256:" and 64 hexadecimal digits, or "env:" and the name'
    )


def _presented_keys(scope: Scope) -> list[bytes]:
    presented = []
    for name, value in scope["headers"]:
        kind, _, token = value.partition(b" ")
        if name == b"authorization" and kind.lower() == b"bearer":
            presented.append(token.strip())
        elif name == b"x-api-key":
            presented.append(value.strip())
    return presented


async def _refuse(scope: Scope, send: Send, message: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": ""})
        return
    problem = Problem(status=401, message=message, code="invalid_api_key")
    await refuse(problem, scope, send, [(b"www-authenticate", b"Bearer")])
