"""How a request begins and ends on paper: let in at the door, written down once it is over.

Knows what it may cost, not who keeps the books. Next: trace.py, gateway.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moestro.api.record import OnFinished, Outcome, Record
from moestro.gateway.asked import Asked
from moestro.gateway.choosing import Chooser, ModelChoice
from moestro.gateway.fleet import Price
from moestro.gateway.trace import REFUSALS, Settle, Trace, tell_all

_BROKEN_STATUS = {"failed": 503, "left": 499}
_NO_PRICE = Price()


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerBound:
    """What an answer may become: its tokens, None where nothing limits them, and their price.

    `price` is exceeded by none of the models that may be asked, and in a cascade has the small
    one's added: its answer is paid for though it be not kept. Of several answers to one request,
    each may have so many tokens.
    """

    max_tokens: int | None
    price: Price
    num_answers: int = 1


class Door(Protocol):
    """Whether a request may begin, by what its key may spend; and what became of it."""

    @property
    def keeps_texts(self) -> bool:
        """Whether `finish` wants what was asked and answered; else it is given empty texts."""

    def admit(
        self,
        caller: str | None,
        model: str,
        *,
        num_prompt: int,
        answer: AnswerBound | None,
    ) -> Settle | None:
        """Let it in, or raise what the caller is told; with no answer to come it is free.

        Returns how to settle it, once, by its record, where its key's means are limited; like
        `finish` that must return at once and must not raise.
        """

    def finish(self, record: Record, *, prompt: str, answer: str) -> None:
        """Keep it, let in or not; must return at once and must not raise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A request that was answered: what was asked and chosen, and the answer's text."""

    record: Record
    asked: Asked
    choice: ModelChoice
    answer: str


class Books:
    """Opens and closes each request's account."""

    def __init__(
        self,
        prices: Mapping[str, Price],
        chooser: Chooser,
        *,
        listeners: tuple[OnFinished, ...],
        door: Door | None,
        after: Sequence[Callable[[Finished], None]],
    ) -> None:
        """`after` are told of answers, with their texts."""
        self._prices = prices
        self._chooser = chooser
        self._listeners = listeners
        self._door = door
        self._after = after
        self.num_open = 0

    def open(self) -> None:
        """Count a request that has come."""
        self.num_open += 1

    def admit(self, trace: Trace, *, is_free: bool) -> None:
        """Ask at the door whether it may begin; one answered from memory is free."""
        if self._door is None:
            return
        asked, choice, call = trace.asked, trace.choice, trace.call
        assert asked is not None
        assert choice is not None
        prices = [self._prices[model] for model in choice.models]
        price = Price.dearest(prices)
        if choice.cascade is not None:
            price += prices[0]
        bound = AnswerBound(
            max_tokens=asked.answer_limit, price=price, num_answers=asked.num_choices
        )
        trace.settle = self._door.admit(
            call.caller,
            choice.models[0],
            num_prompt=asked.estimated_tokens,
            answer=None if is_free else bound,
        )

    def close(
        self, trace: Trace, outcome: Outcome, status: int, error: str | None, answer: str = ""
    ) -> None:
        """Make the record of a request and give it to all who want it, once."""
        if trace.is_finished:
            return
        trace.is_finished = True
        self.num_open -= 1
        strongest = self._chooser.strongest
        price = self._prices.get(trace.model, _NO_PRICE)
        # Who talks makes no embeddings: there is nothing to compare with.
        is_compared = trace.asked is None or trace.asked.kind != "embeddings"
        best = self._prices[strongest] if strongest is not None and is_compared else None
        record = trace.record(outcome, status, price, best, error)
        # First of all: what is not given back is held for ever.
        if trace.settle is not None:
            trace.settle(record)
        if trace.span is not None:
            trace.span.end(record)
        tell_all(self._listeners, record)
        asked, choice = trace.asked, trace.choice
        if self._door is not None:
            if asked is None or not self._door.keeps_texts:
                self._door.finish(record, prompt="", answer="")
            else:
                self._door.finish(record, prompt=asked.prompt, answer=answer)
        # An answer that was kept has been told of when it was made.
        is_new = outcome == "answered" and trace.member is not None
        if is_new and asked is not None and choice is not None:
            for tell in self._after:
                tell(Finished(record=record, asked=asked, choice=choice, answer=answer))

    @property
    def reads_answers(self) -> bool:
        """Whether anybody wants an answer's text."""
        return bool(self._after) or (self._door is not None and self._door.keeps_texts)


def status_of(error: BaseException, outcome: Outcome) -> int:
    """Return the status that the server will give an error, for the record."""
    for kind, status in REFUSALS.items():
        if isinstance(error, kind):
            return status
    return _BROKEN_STATUS.get(outcome, 500)
