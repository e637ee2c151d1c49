"""A request passed on as bytes, and the answer as bytes: what is not understood is not changed.

For dialects that both sides speak; what must be translated goes through backend.py. No I/O. Next:
backend.py.
"""

from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A POST by a client: its path, like "/v1/chat/completions", and its body as it came.

    `caller` is the name of the key it came with, None where none is asked for. `headers` are the
    client's own, names in lower case. An audit is no client's: it checks an answer to one.
    """

    path: str
    body: bytes
    request_id: str
    caller: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_audit: bool = False


@dataclass(kw_only=True, slots=True)
class Spent:
    """What an answer has cost so far; grows while it streams."""

    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer: whole as bytes, or pieces as they come; closing the generator aborts the rest.

    Headers' names are in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | AsyncGenerator[bytes, None]
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asker:
    """Who asks, where a request reaches a Backend by another way than a Call."""

    caller: str | None = None
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


# Of the request that a task works at: routes between do not know it.
ASKER: ContextVar[Asker | None] = ContextVar("asker", default=None)


class Relay(Protocol):
    """Passes calls on to whoever answers them, and logs each. Errors are those of a Backend."""

    async def relay(self, call: Call) -> Reply | None:
        """Answer a call; what is wrong with it, or a lack of capacity, is raised.

        None of a call in a dialect that nobody behind it speaks: it must be translated.
        """
