"""The way into the engine: requests are checked, their grammars compiled, their choices made.

Grammars are compiled beside the steps, so that nobody's stream waits for an elaborate schema.
Knows no tensors. Next: engine.py, scheduler.py.
"""

import logging
import secrets
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from moestro.engine.request import EngineRequest, Sequence
from moestro.errors import BackendError, ConfigError, DataError, MoestroError
from moestro.model.config import ModelConfig
from moestro.text.grammar import Grammar, GrammarFactory

log = logging.getLogger(__name__)


class Intake:
    """Holds requests until they are ready to be scheduled, in the order in which they came."""

    def __init__(
        self, shape: ModelConfig, max_length: int, grammars: GrammarFactory | None
    ) -> None:
        self._shape = shape
        self._max_length = max_length
        self._grammars = grammars
        self._compiler = ThreadPoolExecutor(1, "grammar")
        self._held: dict[str, tuple[EngineRequest, Future[Grammar] | None]] = {}
        self._num_arrivals = 0

    def __len__(self) -> int:
        return len(self._held)

    def take(self, request: EngineRequest) -> None:
        """Hold a request; ConfigError or DataError if it can never be answered."""
        self._check(request)
        future = None
        if request.grammar is not None:
            if self._grammars is None:
                raise ConfigError("this engine has no tokenizer: it cannot follow a grammar")
            future = self._compiler.submit(self._grammars.compile, request.grammar)
        self._held[request.id] = request, future

    def drop(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""
        _, future = self._held.pop(request_id, (None, None))
        if future is not None:
            # Others' grammars wait behind it.
            future.cancel()

    def pop_ready(self) -> list[tuple[EngineRequest, Grammar | MoestroError | None]]:
        """Return the requests that wait for nothing more, with their grammars or what is wrong."""
        ready = [each for each in self._held.values() if each[1] is None or each[1].done()]
        for request, _ in ready:
            del self._held[request.id]
        return [(request, None if future is None else _result(future)) for request, future in ready]

    def choices(self, request: EngineRequest) -> list[Sequence]:
        """Make the sequences of a request; all but the first follow the first."""
        seed = request.sampling.seed
        first_seed = secrets.randbits(62) if seed is None else seed
        if not request.turn:
            self._num_arrivals += 1
        made: list[Sequence] = []
        for choice in range(request.num_choices):
            made.append(
                Sequence(
                    request=request,
                    choice=choice,
                    seed=first_seed + choice,
                    arrival=self._num_arrivals + request.turn + choice,
                    tokens=list(request.prompt),
                    leader=made[0] if made else None,
                )
            )
        return made

    def _check(self, request: EngineRequest) -> None:
        size = self._shape.vocab_size
        outside = [token for token in request.prompt if not 0 <= token < size]
        if outside:
            raise DataError(f"token {outside[0]} is outside the vocabulary of {size}: send others")
        num_tokens = len(request.prompt) + request.max_tokens
        if num_tokens > self._max_length:
            raise DataError(
                f"prompt and answer need {num_tokens} tokens, limit {self._max_length}:"
                " shorten the prompt or lower max_tokens"
            )
        self._check_experts(request.experts)
        _check_named(request, size)

    def _check_experts(self, experts: float | str | None) -> None:
        if experts is None:
            return
        fewest, most = self._shape.fewest_experts, self._shape.num_experts_per_tok
        if not self._shape.has_budget:
            raise ConfigError(
                f"experts is {experts}, but this checkpoint has no budget table: calibrate it first"
                " (moestro convert --calibrate), or leave experts out",
                param="experts",
            )
        if experts != "auto" and not fewest <= float(experts) <= most:
            raise ConfigError(
                f"experts is {experts}: this model takes {fewest} to {most} per token",
                param="experts",
            )


def _check_named(request: EngineRequest, vocab_size: int) -> None:
    """Refuse token ids that the model does not have."""
    named: dict[str, Iterable[int]] = {
        "logit_bias": request.sampling.logit_bias,
        "stop_token_ids": request.stop_token_ids,
    }
    for name, token_ids in named.items():
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise ConfigError(
                    f"{name} names token {token_id}: the model's ids are 0 to {vocab_size - 1}",
                    param=name,
                )


def _result(compilation: Future[Grammar]) -> Grammar | MoestroError:
    error = compilation.exception()
    if error is None:
        return compilation.result()
    if isinstance(error, MoestroError):
        return error
    # The compiler is a library's: what it trips over ends one request, not the engine.
    log.error("the compiler of grammars failed", exc_info=error)
    return BackendError(f"the grammar could not be compiled ({type(error).__name__}: {error})")
