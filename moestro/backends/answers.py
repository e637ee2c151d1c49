"""One request's events from the engine become what a backend's caller reads, choice by choice.

Knows what was asked and what the engine reports; no processes. Next: choice.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moestro.api.chunks import Chunk, Started, Timing, Token, Usage
from moestro.backends.choice import Choice
from moestro.backends.token_names import Names, Wish
from moestro.engine.request import (
    EndEvent,
    EngineRequest,
    Event,
    FailEvent,
    NewToken,
    PromptEvent,
    StartEvent,
    TokensEvent,
)
from moestro.errors import BackendError, DataError


@dataclass(frozen=True, kw_only=True)
class Echo:
    """The prompt's own tokens to return first, behind the `num_lead` that the caller did not write.

    Without `has_scores` they are known at once; else the engine sends their log-probabilities.
    """

    text: str
    tokens: tuple[Token, ...]
    num_lead: int
    has_scores: bool


class Reply:
    """One request as it is answered. `is_over` once every choice has ended."""

    def __init__(
        self,
        model: str,
        request: EngineRequest,
        choices: Sequence[Choice],
        names: Names,
        wish: Wish,
        echo: Echo | None = None,
    ) -> None:
        self._model = model
        self._request = request
        self._choices = choices
        self._names = names
        self._wish = wish
        self._echo = echo
        self._started: StartEvent | None = None
        self._ended: EndEvent | None = None
        self._satisfied: list[int] = []

    @property
    def is_over(self) -> bool:
        """Whether the engine is done with the request."""
        return self._ended is not None

    def pop_satisfied(self) -> list[int]:
        """Return the choices that their text has ended since, which the engine goes on with."""
        satisfied, self._satisfied = self._satisfied, []
        return satisfied

    def take(self, events: Sequence[Event]) -> Iterator[Started | Chunk]:
        """Read the events of one step; DataError or BackendError where the request failed."""
        touched: dict[int, Choice] = {}
        for event in events:
            match event:
                case StartEvent():
                    yield from self._start(event)
                case PromptEvent():
                    yield from self._echo_scores(event)
                case TokensEvent():
                    choice = self._choices[event.choice]
                    # Behind a stop string the engine may have gone on for a step or two.
                    if choice.finish is None:
                        touched[event.choice] = choice
                        self._push_all(event)
                case EndEvent():
                    self._ended = event
                case FailEvent():
                    kind = DataError if event.is_callers_fault else BackendError
                    raise kind(event.message, param=event.param)
        chunks = (choice.take_chunk() for choice in touched.values())
        yield from (chunk for chunk in chunks if chunk is not None)

    def without_engine(self) -> Iterator[Started | Chunk]:
        """Return the whole answer of a request that asks for no new token and no score."""
        yield from self._start(
            StartEvent(request_id=self._request.id, cached_tokens=0, experts=None, queue_s=0.0)
        )
        yield from self.close()

    def close(self) -> Iterator[Chunk]:
        """Return what comes last: the choices of no length, what all cost and how long it took."""
        for index, choice in enumerate(self._choices):
            if choice.finish is None:
                yield Chunk(index=index, finish="length")
        yield Chunk(usage=self._usage(), timing=self._timing())

    def _start(self, event: StartEvent) -> Iterator[Started | Chunk]:
        self._started = event
        yield Started(
            model=self._model,
            prompt_tokens=len(self._request.prompt),
            cached_tokens=event.cached_tokens,
            experts=event.experts,
        )
        if self._echo is not None and not self._echo.has_scores:
            yield from self._echo_all(self._echo.tokens)

    def _echo_scores(self, event: PromptEvent) -> Iterator[Chunk]:
        if self._echo is not None:
            own = event.scores[self._echo.num_lead :]
            tokens = (self._names.describe_prompt(score, self._wish) for score in own)
            yield from self._echo_all(tuple(tokens))

    def _echo_all(self, tokens: tuple[Token, ...]) -> Iterator[Chunk]:
        assert self._echo is not None
        for index in range(len(self._choices)):
            yield Chunk(index=index, text=self._echo.text, tokens=tokens, is_echo=True)

    def _push_all(self, event: TokensEvent) -> None:
        for new in event.tokens():
            self._push(event.choice, new)
            if self._choices[event.choice].finish is not None:
                return

    def _push(self, index: int, new: NewToken) -> None:
        choice = self._choices[index]
        token = self._names.describe(new, self._wish)
        is_stop_token = new.finish == "stop" and token.token_id in self._request.stop_token_ids
        if is_stop_token:
            choice.end("stop", token)
            return
        is_satisfied = choice.push(token)
        if is_satisfied and new.finish is None:
            self._satisfied.append(index)
        elif not is_satisfied and new.finish is not None:
            choice.end(new.finish)

    def _timing(self) -> Timing | None:
        if self._started is None or self._ended is None:
            return None
        return Timing(
            queue_s=self._started.queue_s,
            prefill_s=self._ended.prefill_s,
            decode_s=self._ended.decode_s,
        )

    def _usage(self) -> Usage:
        num_counted = sum(choice.num_counted for choice in self._choices)
        sum_experts = sum(choice.sum_experts for choice in self._choices)
        return Usage(
            prompt_tokens=len(self._request.prompt),
            completion_tokens=sum(choice.num_tokens for choice in self._choices),
            cached_tokens=0 if self._started is None else self._started.cached_tokens,
            reasoning_tokens=sum(choice.num_reasoning for choice in self._choices),
            mean_experts=sum_experts / num_counted if num_counted else None,
            draft_tokens=0 if self._ended is None else self._ended.draft_tokens,
            accepted_draft_tokens=0 if self._ended is None else self._ended.accepted_draft_tokens,
        )
