"""A local backend whose engine recites token ids in this very process: no weights, no waiting.

Knows no claims. Next: test_local.py.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moestro.api.chat import ChatRequest, CompletionRequest, Message, Options, Request
from moestro.api.chunks import Chunk, Started
from moestro.api.sampling import Sampling
from moestro.backends.checkpoint import Checkpoint
from moestro.backends.local import LocalBackend
from moestro.engine.config import EngineConfig
from moestro.engine.process import EngineProcess, Feed
from moestro.engine.request import (
    EndEvent,
    EngineRequest,
    Event,
    FailEvent,
    PromptEvent,
    StartEvent,
    TokenScore,
    TokensEvent,
)
from moestro.engine.stats import EngineStats
from moestro.errors import BackendError
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.text.learn import SPECIAL_TOKENS, learn
from moestro.text.template import ChatTemplate
from moestro.text.tokenizer import Tokenizer
from tests.builders import tiny_config

BUDGET = BudgetConfig(fractions=(0.0, 1.0), thresholds=((-0.5, -0.1),))
SHAPE: dict[str, Any] = {"vocab_size": 320, "max_position_embeddings": 256, "budget": BUDGET}


class Reciter(EngineProcess):
    """Answers choice k of each request with the k-th text's tokens, one a step.

    `is_held` keeps requests waiting; `fault` fails them; `requests`, `aborted` and `was_cut`
    remember.
    """

    def __init__(self, answers: Sequence[Sequence[int]], *, is_held: bool = False) -> None:
        super().__init__("none:none", {})
        self.state = "ready"
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.was_cut: list[tuple[str, int]] = []
        self.failure: FailEvent | None = None
        self.is_held = is_held
        self._answers = answers
        self._open: dict[str, Feed] = {}
        self._reciting: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.state = "ready"

    async def stop(self) -> None:
        self.state = "stopped"
        self.die("the server stopped")

    def submit(self, request: EngineRequest) -> Feed:
        self.requests.append(request)
        feed = self._open[request.id] = Feed()
        task = asyncio.ensure_future(self._recite(request, feed))
        self._reciting.add(task)
        task.add_done_callback(self._reciting.discard)
        return feed

    def abort(self, request_id: str) -> None:
        if self._open.pop(request_id, None) is not None:
            self.aborted.append(request_id)

    def cut(self, request_id: str, choice: int) -> None:
        if request_id in self._open:
            self.was_cut.append((request_id, choice))

    def ask_stats(self) -> None:
        """Nothing changes."""

    def die(self, message: str) -> None:
        for feed in self._open.values():
            feed.push(BackendError(message))
        self._open.clear()

    async def _recite(self, request: EngineRequest, feed: Feed) -> None:
        while self.is_held:
            await asyncio.sleep(0.001)
        if self.failure is not None:
            feed.push([self.failure])
            return
        step: list[Event] = [
            StartEvent(
                request_id=request.id,
                cached_tokens=1,
                experts=3.0 if request.experts == "auto" else None,
                queue_s=0.5,
            )
        ]
        if request.scores_prompt:
            scores = tuple(TokenScore(token_id=each, logprob=-0.5) for each in request.prompt)
            step.append(PromptEvent(request_id=request.id, scores=scores))
        answers = [self._answers[k % len(self._answers)] for k in range(request.num_choices)]
        longest = min(max(map(len, answers)), request.max_tokens)
        for place in range(longest):
            if request.id not in self._open:
                return
            for choice, answer in enumerate(answers):
                if (request.id, choice) not in self.was_cut:
                    step += self._token(request, choice, answer, place)
            if place < longest - 1:
                feed.push(step)
                step = []
            await asyncio.sleep(0)
        self._open.pop(request.id, None)
        end = EndEvent(
            request_id=request.id,
            prefill_s=0.25,
            decode_s=0.75,
            draft_tokens=4,
            accepted_draft_tokens=3,
        )
        feed.push([*step, end])

    def _token(
        self, request: EngineRequest, choice: int, answer: Sequence[int], place: int
    ) -> list[Event]:
        if place >= len(answer):
            return []
        is_stop = answer[place] in request.stop_token_ids
        is_last = place == min(len(answer), request.max_tokens) - 1
        score = TokenScore(
            token_id=answer[place], logprob=-1.0, alternatives=((answer[place], -1.0), (65, -2.0))
        )
        return [
            TokensEvent(
                request_id=request.id,
                choice=choice,
                scores=(score,),
                num_experts=(2.0 + place % 2,),
                visits=((((1, 0.5), (3, 0.25)),),) if request.wants_xray else (),
                finish="stop" if is_stop else "length" if is_last else None,
            )
        ]


def tokenizer(*names: str) -> Tokenizer:
    """Learn a small vocabulary with an end-of-text token, the gap's three, and those named."""
    texts = ["def area(radius):\n    return radius * radius\n" * 20]
    return learn(texts, 320, special_tokens=(*SPECIAL_TOKENS, *names))


def build(
    *texts: str,
    template: str | None = None,
    shape: Mapping[str, Any] | None = None,
    config: EngineConfig | None = None,
    stats: EngineStats | None = None,
    ends: bool = True,
    sampling: Sampling | None = None,
    names: Sequence[str] = (),
) -> tuple[LocalBackend, Reciter]:
    """Build a backend that recites the texts, each with the end-of-text token if it `ends`.

    `names` are special tokens of its own.
    """
    words = tokenizer(*names)
    tail = [words.eos_id] if ends else []
    engine = Reciter([[*words.encode_trusted(text), *tail] for text in texts or ("radius",)])
    engine.stats = stats
    model: ModelConfig = tiny_config(**(SHAPE | dict(shape or {})))
    checkpoint = Checkpoint(
        folder=Path("tiny"),
        created=1,
        shape=model,
        tokenizer=words,
        template=ChatTemplate({"default": template}) if template else plain(),
        has_own_template=template is not None,
        stop_ids=frozenset({words.eos_id}),
        sampling=sampling or Sampling(),
    )
    return LocalBackend("tiny", checkpoint, config or EngineConfig(), engine), engine


def plain() -> ChatTemplate:
    """Return the template of a model that has none."""
    return ChatTemplate.plain(Path("nowhere"))


def completion(prompt: str | tuple[int, ...] = "def", **changes: Any) -> CompletionRequest:
    """Ask for a text to be gone on from; options are given flat."""
    own = {
        key: changes.pop(key)
        for key in ("suffix", "echo", "model", "has_special_tokens", "splits_special_tokens")
        if key in changes
    }
    return CompletionRequest(
        **({"model": "tiny", "prompt": prompt} | own), options=Options(**changes)
    )


def chat(text: str = "area", **changes: Any) -> ChatRequest:
    """Ask a question; options are given flat."""
    names = ("tools", "tool_choice", "has_parallel_tool_calls", "template_variables")
    own = {key: changes.pop(key) for key in names if key in changes}
    messages = (Message(role="user", content=text),)
    return ChatRequest(model="tiny", messages=messages, options=Options(**changes), **own)


def ask(backend: LocalBackend, request: Request) -> list[Started | Chunk]:
    """Read a whole answer."""

    return asyncio.run(read(backend, request))


def chunks(pieces: Sequence[Started | Chunk]) -> list[Chunk]:
    """Leave out what comes first."""
    assert isinstance(pieces[0], Started)
    found = [piece for piece in pieces[1:] if isinstance(piece, Chunk)]
    assert len(found) == len(pieces) - 1
    return found


def text_of(pieces: Sequence[Started | Chunk], index: int = 0) -> str:
    """Join the text of one choice."""
    return "".join(chunk.text for chunk in chunks(pieces) if chunk.index == index)


async def read(backend: LocalBackend, request: Request) -> list[Started | Chunk]:
    """Read a whole answer beside others."""
    return [piece async for piece in backend.stream(request)]
