"""What is kept of one request through a gateway: who asked, who answered, why, at what cost.

No prompt, no answer, no key. Knows no database. Next: relay.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

# "refused": a caller's mistake or a lack of capacity, before anybody was asked. "failed": nobody
# could answer, or a stream broke that nobody could go on with. "left": the client went away.
Outcome = Literal["answered", "refused", "failed", "left"]
# The reason of what no client asked for: it checks an answer to one, and costs what it costs.
AUDIT = "audit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One request, written once, when it has ended.

    `asked` is the model as the client named it ("auto" among them), `model` the fleet's model that
    answered and `backend` which of its servers; both are "" where nobody did. An answer given again
    has its model, no backend, the reason "cache", no tokens and no cost. `reason` is a short
    phrase, the same that the header x-moestro-reason has. `digest`, `scores` and `threshold` are
    the policy's decision, None or empty where a name was fixed. Prices are those of the model at
    the time, in dollars per million tokens; `cost_usd` follows from them, and includes what tries
    that were given up had produced as far as it is known (`wasted_tokens` of them). Of a stream
    with failovers it is the sum of its parts: each who went on read all that was there before, and
    other models have other prices.

    Tokens come from the answer's usage; `is_estimated` where it had none, and they were counted
    from a stream's events or a whole answer's text. `status` is what the client saw: a stream that
    broke has its 200, and its outcome says so. `conversation` is a hash of what names the
    conversation, for stickiness; `num_attempts` counts requests sent to backends, `num_failovers`
    streams continued elsewhere. `first_s` is from the request's arrival to the first byte of the
    answer, None without one. `began_at` is in seconds since 1970.
    """

    request_id: str
    began_at: float
    path: str
    caller: str | None
    asked: str
    model: str
    backend: str
    reason: str
    outcome: Outcome
    status: int
    is_streamed: bool
    digest: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    conversation: str | None = None
    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    wasted_tokens: int = 0
    is_estimated: bool = False
    cost_usd: float = 0.0
    # What the strongest model of the fleet's policy would have cost for the same tokens.
    strongest_cost_usd: float | None = None
    first_s: float | None = None
    whole_s: float = 0.0
    num_attempts: int = 0
    num_failovers: int = 0
    error: str | None = None

    @property
    def is_audit(self) -> bool:
        """Whether it was asked to check an answer: it has a cost, and is no client's request."""
        return self.reason.partition(";")[0] == AUDIT


class OnFinished(Protocol):
    """Takes each request's record, once; must return at once and must not raise."""

    def __call__(self, record: Record) -> None:
        """Keep it, or queue it to be kept."""
