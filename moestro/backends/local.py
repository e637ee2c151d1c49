"""READ FIRST: a model on this machine as a Backend: text on one side, an engine on the other.

Decides before any work whether a request can be answered; then builds its prompt, hands it to the
engine's process and makes an answer of what comes back. Next: jobs.py, answers.py, admission.py.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import fields

from moestro.api.backend import Stream
from moestro.api.cards import ModelCard
from moestro.api.chat import Request
from moestro.api.stats import State, Stats
from moestro.backends.admission import Admission, Ticket
from moestro.backends.checkpoint import Checkpoint
from moestro.backends.jobs import Job, Jobs
from moestro.backends.prompts import Prompts
from moestro.backends.tally import Tally
from moestro.engine.config import EngineConfig
from moestro.engine.process import EngineProcess, RestartConfig
from moestro.engine.stats import EngineStats
from moestro.engine.worker import STATS_EVERY_S
from moestro.errors import BackendError, UnknownModelError

log = logging.getLogger(__name__)

FACTORY = "moestro.engine.load:load_engine"
_POLL_S = 0.02
# Others of the server get their turn at least so often, whatever one answer is made of.
_LONGEST_TURN_S = 0.005


class LocalBackend:
    """One checkpoint, served under one name. `engine` says how its process fares."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        config: EngineConfig,
        engine: EngineProcess | None = None,
    ) -> None:
        """Take another engine than the checkpoint's own for tests."""
        arguments = {
            "folder": checkpoint.folder,
            "config": config,
            "stop_ids": sorted(checkpoint.stop_ids),
        }
        restart = RestartConfig(watchdog_s=config.watchdog_s)
        self.engine = engine or EngineProcess(FACTORY, arguments, restart)
        self._checkpoint = checkpoint
        longest = checkpoint.shape.max_position_embeddings
        limits = (longest, config.max_length, config.cache.num_tokens)
        length = min(limit for limit in limits if limit is not None)
        self._card = checkpoint.card(name, length)
        self._prompts = Prompts(
            checkpoint.tokenizer, checkpoint.template, checkpoint.shape.vocab_size, length
        )
        self._jobs = Jobs(name, checkpoint, length)
        self._admission = Admission(config.queue, config.max_batch)
        self._tally = Tally()
        self._is_draining = False
        self._asked_at = 0.0

    async def start(self) -> None:
        """Begin to load in another process."""
        if not self._jobs.reads_tools:
            log.warning(
                "%s: its chat template tells of tools, but not in a format that is known: a call"
                " comes out as text, unless tool_choice forces it",
                self._card.id,
            )
        await self.engine.start()

    async def stop(self, deadline_s: float) -> None:
        """Refuse new requests, let those under way end within the deadline, end the process."""
        self._is_draining = True
        end = time.monotonic() + deadline_s
        while self._admission.tickets and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        await self.engine.stop()

    def cards(self) -> Sequence[ModelCard]:
        """Return the one model's card."""
        return (self._card,)

    def stats(self) -> Sequence[Stats]:
        """Return what was counted, at most a moment old while requests run."""
        now = time.monotonic()
        if now - self._asked_at >= STATS_EVERY_S:
            self._asked_at = now
            self.engine.ask_stats()
        counted = self._tally.update(self.engine.stats, self.engine.restarts)
        known = {field.name: getattr(counted, field.name) for field in fields(EngineStats)}
        # The door knows of a request before the engine does, and after the engine has died.
        known |= {
            "num_running": self._admission.num_running,
            "num_waiting": self._admission.num_waiting,
            "num_waiting_tokens": self._admission.num_waiting_tokens,
        }
        return (
            Stats(
                model=self._card.id,
                state=self._state(),
                progress=self.engine.progress,
                engine_restarts=self.engine.restarts,
                engine_hangs=self.engine.hangs,
                **known,
            ),
        )

    def check_room(self, num_before: int) -> None:
        """Raise CapacityError if so many more than wait already would fill the queue."""
        self._admission.check_room(num_before)

    async def stream(self, request: Request) -> Stream:
        """Answer a request, or refuse it at once; closing the generator frees all it holds."""
        self._check_model(request.model)
        if self._is_draining:
            raise BackendError("the server is shutting down: ask again in a moment")
        self._jobs.check(request)
        with self._admission.enter(request.options.num_choices) as ticket:
            await self.engine.wait_ready()
            prompt = await self._prompts.build(request)
            job = self._jobs.build(request, prompt)
            ticket.weigh(len(prompt.ids))
            answer = self._answer(job, ticket)
            async with aclosing(answer) as pieces:
                async for piece in pieces:
                    yield piece

    async def tokenize(self, request: Request) -> list[int]:
        """Return the token ids that the request's prompt becomes."""
        self._check_model(request.model)
        return list((await self._prompts.build(request)).ids)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, with special tokens by their names."""
        self._check_model(model)
        return await self._prompts.read(token_ids)

    async def show_tokens(self, model: str, token_ids: Sequence[int]) -> list[str]:
        """Return each token as a person reads it."""
        self._check_model(model)
        return await self._prompts.show(token_ids)

    async def _answer(self, job: Job, ticket: Ticket) -> Stream:
        if not job.request.max_tokens and not job.request.scores_prompt:
            for piece in job.answer.without_engine():
                yield piece
            return
        feed = self.engine.submit(job.request)
        try:
            while not job.answer.is_over:
                events = await feed.next()
                ticket.start()
                turn = _Turn()
                for piece in job.answer.take(events):
                    yield piece
                    await turn.end_if_long()
                for choice in job.answer.pop_satisfied():
                    self.engine.cut(job.request.id, choice)
        finally:
            # Before the last chunk, which a reader may take late or never.
            self.engine.abort(job.request.id)
        for chunk in job.answer.close():
            yield chunk

    def _check_model(self, model: str) -> None:
        if model != self._card.id:
            raise UnknownModelError(
                f"model {model[:100]!r} is not served here: choose {self._card.id}"
            )

    def _state(self) -> State:
        if self._is_draining and self.engine.state != "stopped":
            return "draining"
        return self.engine.state


class _Turn:
    """A turn on the event loop, begun now: a step's many choices are much work in one go."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    async def end_if_long(self) -> None:
        if time.monotonic() - self._began > _LONGEST_TURN_S:
            await asyncio.sleep(0)
            self._began = time.monotonic()
