"""One request's way through the gateway, noted as it happens, and the record that it ends in.

Next: gateway.py, api/record.py.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moestro.api.record import OnFinished, Outcome, Record
from moestro.api.relay import Call, Spent
from moestro.errors import (
    CapacityError,
    ConfigError,
    DataError,
    ForbiddenError,
    QuotaError,
    UnknownKeyError,
    UnknownModelError,
)
from moestro.gateway.asked import Asked
from moestro.gateway.choosing import ModelChoice
from moestro.gateway.events import Usage, as_count
from moestro.gateway.fleet import Price
from moestro.gateway.queue import Member
from moestro.gateway.spans import Span
from moestro.gateway.tape import Tape

log = logging.getLogger(__name__)

# What refuses a request before anybody is asked, and the status that its sender sees.
REFUSALS: Mapping[type[Exception], int] = {
    CapacityError: 429,
    ConfigError: 400,
    DataError: 400,
    ForbiddenError: 403,
    QuotaError: 429,
    UnknownKeyError: 401,
    UnknownModelError: 404,
}

# Gives back what a request held of its key's means, and counts what its record says it used.
Settle = Callable[[Record], None]


@dataclass(kw_only=True, slots=True)
class Trace:
    """What is known of a request so far; `model` and `member` are whoever answers it.

    `is_stand_in` says that a model before it was asked in vain, for no fault of the request's.
    `settle` is there once the request was let in, if it holds anything. `extra_usd` was spent
    beside what its tokens cost at the answering model's price.
    """

    call: Call
    began_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)
    asked: Asked | None = None
    choice: ModelChoice | None = None
    reason: str = ""
    model: str = ""
    member: Member | None = None
    is_stand_in: bool = False
    experts: float | None = None
    usage: Usage | None = None
    num_events: int = 0
    tape: Tape | None = None
    span: Span | None = None
    settle: Settle | None = None
    wasted_tokens: int = 0
    extra_usd: float = 0.0
    first_s: float | None = None
    num_attempts: int = 0
    num_failovers: int = 0
    spent: Spent = field(default_factory=Spent)
    is_finished: bool = False

    def elapsed_s(self) -> float:
        """Return the seconds since the request came."""
        return time.perf_counter() - self.began

    def headers(self, content_type: str) -> dict[str, str]:
        """Say who answers, why, and with how many experts per token where it was granted fewer."""
        return {
            "content-type": content_type,
            "x-moestro-model": _latin(self.model),
            "x-moestro-backend": _latin(self.member.name if self.member is not None else ""),
            "x-moestro-reason": _latin(self.reason),
            "x-moestro-attempts": str(self.num_attempts),
            **self.experts_header(),
        }

    def experts_header(self) -> dict[str, str]:
        """Return what a server of ours says of one answer's experts, nothing where it does not."""
        return {} if self.experts is None else {"x-moestro-experts": f"{self.experts:g}"}

    def record(
        self,
        outcome: Outcome,
        status: int,
        price: Price,
        strongest: Price | None,
        error: str | None = None,
    ) -> Record:
        """Return what is kept of it; prices are those of whoever answered, and of the strongest."""
        asked, choice, usage = self.asked, self.choice, self.usage
        prompt = as_count(usage.prompt_tokens) if usage is not None else None
        completion = as_count(usage.completion_tokens) if usage is not None else None
        details = usage.prompt_tokens_details if usage is not None else None
        num_cached = as_count(details.cached_tokens) if details is not None else None
        num_prompt = _estimate_prompt(asked) if prompt is None else prompt
        num_completion = self.num_events if completion is None else completion
        if outcome == "refused" or not self.model:
            num_prompt = num_completion = 0
        self.spent.completion_tokens = num_completion
        is_known = prompt is not None and completion is not None
        return Record(
            request_id=self.call.request_id,
            began_at=self.began_at,
            path=self.call.path,
            caller=self.call.caller,
            asked=asked.model if asked is not None else "",
            model=self.model,
            backend=self.member.name if self.member is not None else "",
            reason=self.reason,
            outcome=outcome,
            status=status,
            is_streamed=asked is not None and asked.is_stream,
            digest=choice.digest if choice is not None else None,
            scores=choice.scores if choice is not None else {},
            threshold=choice.threshold if choice is not None else None,
            conversation=(asked.conversation or None) if asked is not None else None,
            input_usd_per_mtok=price.input_usd_per_mtok,
            output_usd_per_mtok=price.output_usd_per_mtok,
            prompt_tokens=num_prompt,
            cached_tokens=num_cached or 0,
            completion_tokens=num_completion,
            wasted_tokens=self.wasted_tokens,
            is_estimated=bool(self.model) and not is_known,
            cost_usd=price.cost_usd(num_prompt, num_completion) + self.extra_usd,
            strongest_cost_usd=(
                None if strongest is None else strongest.cost_usd(num_prompt, num_completion)
            ),
            first_s=self.first_s,
            whole_s=self.elapsed_s(),
            num_attempts=self.num_attempts,
            num_failovers=self.num_failovers,
            error=error,
        )


def outcome_of(error: BaseException) -> Outcome:
    """Return how a request ended that raised an error before its answer began."""
    if isinstance(error, tuple(REFUSALS)):
        return "refused"
    return "failed" if isinstance(error, Exception) else "left"


def tell_all(listeners: tuple[OnFinished, ...], record: Record) -> None:
    """Give a record to all who want it, and write its line in the log: no text, no key."""
    for listener in listeners:
        listener(record)
    log.info(
        "%s %s -> %s at %s (%s): %s, status %d, first %s, whole %.3f s, tokens %d+%d%s,"
        " attempts %d, failovers %d",
        record.request_id,
        ascii(record.asked[:100])[1:-1],
        record.model or "nobody",
        record.backend or "none",
        record.reason,
        record.outcome,
        record.status,
        "none" if record.first_s is None else f"{record.first_s:.3f} s",
        record.whole_s,
        record.prompt_tokens,
        record.completion_tokens,
        " estimated" if record.is_estimated else "",
        record.num_attempts,
        record.num_failovers,
    )


def _estimate_prompt(asked: Asked | None) -> int:
    return asked.estimated_tokens if asked is not None else 0


def _latin(text: str) -> str:
    # A header is Latin text; a model's name need not be.
    return text.encode("ascii", "backslashreplace").decode()
