"""An engine without a model: counts on from the prompt, can be slow, hang, crash or refuse.

Importable by name, because it runs in a process of its own. Next: test_worker.py.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from itertools import repeat

from moestro.api.stats import ExpertStats
from moestro.engine.request import (
    EndEvent,
    EngineRequest,
    Event,
    PromptEvent,
    StartEvent,
    TokenScore,
    TokensEvent,
)
from moestro.engine.stats import EngineStats
from moestro.errors import CheckpointError, ConfigError

VOCAB_SIZE = 320
# As prompts, these ask for trouble.
REFUSED, BROKEN, DEADLY, ENDLESS = 301, 302, 303, 304


class FakeEngine:
    """Answers each request with the numbers after its prompt's last token, one a step."""

    def __init__(self, step_s: float = 0.0, max_batch: int = 8) -> None:
        self.aborted: list[str] = []
        self._step_s = step_s
        self._max_batch = max_batch
        self._waiting: list[EngineRequest] = []
        self._running: dict[str, tuple[EngineRequest, list[int]]] = {}
        self._num_tokens = 0
        self._num_prompt = 0

    def submit(self, request: EngineRequest) -> None:
        if request.prompt[-1] == REFUSED:
            raise ConfigError("the prompt is refused: send another", param="prompt")
        if request.prompt[-1] == BROKEN:
            raise ValueError("broken")
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self._waiting = [request for request in self._waiting if request.id != request_id]
        self._running.pop(request_id, None)

    def cut(self, request_id: str, choice: int) -> None:
        if request_id in self._running:
            request, counts = self._running[request_id]
            counts[choice] = request.max_tokens

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def step(self, wake_file: int | None = None) -> list[Event]:
        time.sleep(self._step_s)
        events: list[Event] = []
        while self._waiting and len(self._running) < self._max_batch:
            request = self._waiting.pop(0)
            events += self._start(request)
        for request, counts in list(self._running.values()):
            if request.prompt[-1] == DEADLY:
                raise RuntimeError("a step failed")
            if request.prompt[-1] == ENDLESS:
                # As a native call that never returns does, it keeps Python from everything else.
                deque(repeat(None), maxlen=0)
            for choice in range(request.num_choices):
                events += self._advance(request, choice, counts)
            if all(count >= request.max_tokens for count in counts):
                del self._running[request.id]
                events.append(EndEvent(request_id=request.id, prefill_s=0.1, decode_s=0.2))
        return events

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            prompt_tokens=self._num_prompt,
            generation_tokens=self._num_tokens,
            experts=ExpertStats(tokens_LE=((self._num_tokens, 1),)),
        )

    def _start(self, request: EngineRequest) -> list[Event]:
        self._running[request.id] = (request, [0] * request.num_choices)
        self._num_prompt += len(request.prompt)
        experts = 3.0 if request.experts == "auto" else request.experts
        events: list[Event] = [
            StartEvent(request_id=request.id, cached_tokens=2, experts=experts, queue_s=0.01)
        ]
        if request.scores_prompt:
            scores = [TokenScore(token_id=token, logprob=-0.5) for token in request.prompt]
            scores[0] = TokenScore(token_id=request.prompt[0], logprob=None)
            events.append(PromptEvent(request_id=request.id, scores=tuple(scores)))
        return events

    def _advance(self, request: EngineRequest, choice: int, counts: list[int]) -> list[Event]:
        if counts[choice] >= request.max_tokens:
            return []
        counts[choice] += 1
        self._num_tokens += 1
        token = (request.prompt[-1] + counts[choice]) % VOCAB_SIZE
        is_stop = token in request.stop_token_ids
        is_last = counts[choice] == request.max_tokens
        if is_stop:
            counts[choice] = request.max_tokens
        return [
            TokensEvent(
                request_id=request.id,
                choice=choice,
                scores=(TokenScore(token_id=token, logprob=-1.0, alternatives=((token, -1.0),)),),
                num_experts=(2.0 + counts[choice] % 2,),
                visits=((((1, 0.5), (3, 0.25)),),) if request.wants_xray else (),
                finish="stop" if is_stop else "length" if is_last else None,
            )
        ]


def build(
    report_progress: Callable[[str, float], None],
    load_s: float = 0.0,
    step_s: float = 0.0,
    max_batch: int = 8,
) -> FakeEngine:
    """Load in two stages."""
    report_progress("reading weights", 0.25)
    time.sleep(load_s)
    report_progress("warming up", 0.75)
    return FakeEngine(step_s, max_batch)


def build_damaged(report_progress: Callable[[str, float], None]) -> FakeEngine:
    """Fail as a damaged checkpoint does."""
    raise CheckpointError("weights are cut short: copy the file again")


def build_mortal(report_progress: Callable[[str, float], None]) -> FakeEngine:
    """Die while loading, as a process that takes too much memory does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def build_short(report_progress: Callable[[str, float], None]) -> FakeEngine:
    """Fail as a reader does whose file ends too early."""
    raise EOFError("the file ends")
