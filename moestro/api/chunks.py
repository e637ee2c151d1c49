"""What a backend answers: one `Started`, then `Chunk`s, the last of which carries the usage.

Plain values that cross borders between processes and machines. Next: backend.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, kw_only=True)
class Started:
    """The request is being worked on: nothing but a fault can stop it now.

    `experts` is the mean number of routed experts that it was granted, None where all are taken.
    `headers` say what else is known of who answers; names are in lower case.
    """

    model: str
    prompt_tokens: int
    cached_tokens: int = 0
    experts: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One of the likeliest tokens at a place; `data` is its bytes, `text` how they are shown."""

    token_id: int
    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A routed expert that a token visited, and the weight of its output."""

    expert: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of the answer, or of an echoed prompt.

    `logprob` is None where none was asked for and for a prompt's first token. `num_experts` is the
    mean over layers that its prediction took; `visits` are by MoE layer, in an x-ray only.
    """

    token_id: int
    text: str
    data: bytes
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    num_experts: float | None = None
    visits: tuple[tuple[Visit, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call: `id` and `name` come with the first piece only."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a request cost, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    mean_experts: float | None = None
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where a request's seconds went, by the engine's own clock."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The next piece of choice `index`.

    `text` is certain: no stop string can take it back. `finish` ends a choice, `stop` names the
    stop string, or of the request's own stop tokens the id, that did it. `is_echo`: it is of the
    prompt. `usage` and `timing` come with the last chunk of the request.
    """

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    tokens: tuple[Token, ...] = ()
    is_echo: bool = False
    finish: Finish | None = None
    stop: str | int | None = None
    usage: Usage | None = None
    timing: Timing | None = None
