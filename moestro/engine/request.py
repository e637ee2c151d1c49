"""What the engine is asked, what it remembers of it, and what it reports. No torch, no text.

Next: scheduler.py, engine.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from moestro.api.sampling import Sampling
from moestro.text.grammar import GrammarSpec


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One prompt and how to continue it, in token ids.

    `experts` is the granted budget: None for all, or "auto" to be set when the request starts.
    `stop_token_ids` end an answer (the end-of-text token among them). The `grammar` begins behind
    the answer's first `grammar_after`, the token that ends a model's thoughts; None: at once. No
    answer has one of the `bad_words`. `top_logprobs` and `turn` as in api/chat.py. With
    `scores_prompt` the prompt's own log-probabilities come back, and with `max_tokens` 0 nothing
    else does.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    num_choices: int = 1
    stop_token_ids: frozenset[int] = frozenset()
    grammar: GrammarSpec | None = None
    grammar_after: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    top_logprobs: int | None = None
    scores_prompt: bool = False
    experts: float | Literal["auto"] | None = None
    priority: int = 0
    turn: int = 0
    wants_xray: bool = False


@dataclass(eq=False, kw_only=True)
class Sequence:
    """One choice of a request while it is being written.

    `tokens` are the prompt and the answer so far; the first `num_computed` of them have latents in
    `blocks`. `drafts` are guesses at what follows `tokens`, to be verified in the next step.
    `arrival` numbers clients' requests; each further answer of one counts as if it had come with
    the next. `leader` is the choice whose prompt blocks this one waits to share. `num_cached`
    tokens came from the cache when it was first admitted; `has_started` is true once a step has run
    for it. `block_keys` may reach beyond what is computed.
    """

    request: EngineRequest
    choice: int
    seed: int
    arrival: int
    tokens: list[int]
    experts: float | None = None
    leader: "Sequence | None" = None
    num_computed: int = 0
    num_cached: int = 0
    blocks: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    has_started: bool = False
    is_finished: bool = False
    num_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt = len(self.request.prompt)

    @property
    def is_further(self) -> bool:
        """Whether the same client's request has an answer before this one."""
        return self.request.turn + self.choice > 0

    @property
    def num_generated(self) -> int:
        """How many tokens the answer has."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """How many tokens have no latents yet; 1 between two steps of an answer."""
        return len(self.tokens) - self.num_computed


@dataclass(eq=False, kw_only=True, slots=True)
class Work:
    """What one sequence does in a step: compute tokens `start` to `end` of tokens and drafts.

    `is_sampled` says whether the last real token is computed, so that the next one can be picked;
    `is_decode` whether that token, and guesses behind it, is all: no prompt. In a burst `end` lies
    behind the tokens known, which the model then makes itself, in `num_steps` passes of one row.
    """

    sequence: Sequence
    start: int
    end: int
    num_steps: int = 1
    num_tokens: int = field(init=False)
    is_sampled: bool = field(init=False)
    is_decode: bool = field(init=False)

    def __post_init__(self) -> None:
        # Kept, not asked for each time: the sequence grows when its work is settled.
        num_known = len(self.sequence.tokens)
        self.num_tokens = self.end - self.start
        self.is_sampled = self.end >= num_known
        self.is_decode = self.start >= num_known - 1

    @property
    def num_rows(self) -> int:
        """How many rows of the batch it has."""
        return self.num_tokens if self.num_steps == 1 else 1

    @property
    def row_start(self) -> int:
        """The position of its first row, in a burst that of the last step."""
        return self.start if self.num_steps == 1 else self.end - 1

    def repeat(self, num_steps: int) -> None:
        """Make it a burst of so many steps, or what a burst has come to."""
        self.num_steps = self.num_tokens = num_steps
        self.end = self.start + num_steps


# What each token makes is a tuple: it takes a third of the time to make and to send.
class TokenScore(NamedTuple):
    """A token's log-probability, and the likeliest tokens at its place with theirs."""

    token_id: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StartEvent:
    """A request left the queue."""

    request_id: str
    cached_tokens: int
    experts: float | None
    queue_s: float


@dataclass(frozen=True, kw_only=True)
class PromptEvent:
    """The prompt's own log-probabilities, one entry per prompt token."""

    request_id: str
    scores: tuple[TokenScore, ...]


Finish = Literal["stop", "length"]
Visits = tuple[tuple[tuple[int, float], ...], ...]


class NewToken(NamedTuple):
    """One new token. `visits` are (expert, weight) by MoE layer, in an x-ray only.

    `finish` says that the choice ended with this token; a stop token itself is reported too.
    """

    score: TokenScore
    num_experts: float | None
    visits: Visits = ()
    finish: Finish | None = None


class TokensEvent(NamedTuple):
    """New tokens of one choice, as many as a step gave it, side by side: see `tokens`.

    Without gates there are no `num_experts`, without an x-ray no `visits`.
    """

    request_id: str
    choice: int
    scores: tuple[TokenScore, ...]
    num_experts: tuple[float, ...] = ()
    visits: tuple[Visits, ...] = ()
    finish: Finish | None = None

    def tokens(self) -> Iterator[NewToken]:
        """Return the tokens one by one; only the last can have a `finish`."""
        last = len(self.scores) - 1
        for place, score in enumerate(self.scores):
            yield NewToken(
                score,
                self.num_experts[place] if self.num_experts else None,
                self.visits[place] if self.visits else (),
                self.finish if place == last else None,
            )


@dataclass(frozen=True, kw_only=True)
class EndEvent:
    """All choices of a request ended; its blocks are free."""

    request_id: str
    prefill_s: float
    decode_s: float
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class FailEvent:
    """A request cannot be answered; `is_callers_fault` tells a 400 from a 500.

    `param` is the field of the request that is at fault, where it is one.
    """

    request_id: str
    message: str
    is_callers_fault: bool
    param: str | None = None


Event = StartEvent | PromptEvent | TokensEvent | EndEvent | FailEvent
