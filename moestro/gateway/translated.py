"""A gateway as a Backend: what routes have read in another dialect is asked in OpenAI's words.

So `/v1/messages`, `/v1/responses` and pages work over any fleet. Next: gateway.py, writing.py.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec

from moestro.api.backend import Stream
from moestro.api.cards import AUTO, ModelCard
from moestro.api.chat import ChatRequest, Request
from moestro.api.chunks import Chunk, Started
from moestro.api.fleet_view import ModelView
from moestro.api.relay import ASKER, Asker, Call
from moestro.api.stats import State, Stats
from moestro.errors import BackendError, ConfigError
from moestro.gateway.current import CurrentGateway
from moestro.gateway.events import Cutter, read_data, split
from moestro.gateway.fleet import FleetModel
from moestro.gateway.gateway import Gateway
from moestro.gateway.writing import read_chunks, write_request

_LOOK_S = 0.05
# Tokens are the backends' own, and what asks for them is passed on as it came.
_NO_TOKENS = "a fleet passes on what asks for tokens as it came: send content-type application/json"
# What a fleet's answers say besides of who gives them.
_ABOUT = ("x-moestro-reason", "x-moestro-backend", "x-moestro-attempts", "x-moestro-cache")


class Translated:
    """Answers requests through a gateway, which it starts and stops."""

    def __init__(self, gateway: Gateway | CurrentGateway) -> None:
        self._gateway = gateway
        self._created = int(time.time())
        self._is_started = False
        self._is_draining = False

    async def start(self) -> None:
        """Open the gateway's connections."""
        await self._gateway.start()
        self._is_started = True

    async def stop(self, deadline_s: float) -> None:
        """Let requests under way end within the deadline, then close all connections."""
        self._is_draining = True
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_s
        while loop.time() < until and any(each.num_running for each in self.stats()):
            await asyncio.sleep(_LOOK_S)
        await self._gateway.stop()

    def cards(self) -> Sequence[ModelCard]:
        """Return what whoever asks may name: the fleet's models, `auto` where a policy chooses."""
        chooser = self._gateway.chooser
        cards = [self._card(model) for model in self._gateway.fleet.models]
        if chooser.strongest is not None:
            # Clients plan by it: what only the longest of them holds, `auto` sends there.
            lengths = [card.context_length for card in cards if card.id in chooser.auto_models]
            card = ModelCard(
                id=AUTO,
                created=self._created,
                context_length=max(lengths) if all(lengths) else 0,
                has_chat_template=True,
            )
            cards.insert(0, card)
        asker = ASKER.get() or Asker()
        return [card for card in cards if chooser.may_name(card.id, asker.caller)]

    def stats(self) -> Sequence[Stats]:
        """Return what is counted, by model."""
        return [
            Stats(
                model=model.name,
                state=self._state(model),
                progress=1.0 if model.state == "ready" else 0.0,
                num_running=model.num_in_flight,
                num_waiting=model.num_waiting,
                prompt_tokens=model.prompt_tokens,
                generation_tokens=model.completion_tokens,
            )
            for model in self._gateway.view().models
        ]

    def check_room(self, num_before: int) -> None:
        """Let all in: each model has a line of its own."""

    async def stream(self, request: Request) -> Stream:
        """Answer: one Started, then Chunks."""
        asker = ASKER.get() or Asker()
        path = "/v1/chat/completions" if isinstance(request, ChatRequest) else "/v1/completions"
        call = Call(
            path=path,
            body=msgspec.json.encode(write_request(request)),
            request_id=asker.request_id or uuid.uuid4().hex,
            caller=asker.caller,
            headers=asker.headers,
        )
        reply = await self._gateway.relay(call)
        assert reply is not None
        if isinstance(reply.body, bytes):
            raise ConfigError(_read_message(reply.body))
        async with aclosing(reply.body) as pieces:
            yield _read_start(reply.headers)
            async for chunk in _read_chunks(pieces):
                yield chunk

    async def tokenize(self, request: Request) -> list[int]:
        """Refuse: what is relayed does not come here."""
        raise ConfigError(_NO_TOKENS)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Refuse: what is relayed does not come here."""
        raise ConfigError(_NO_TOKENS)

    async def show_tokens(self, model: str, token_ids: Sequence[int]) -> list[str]:
        """Refuse: what is relayed does not come here."""
        raise ConfigError(_NO_TOKENS)

    def _card(self, model: FleetModel) -> ModelCard:
        server = self._gateway.fleet.local.get(model.name)
        card = ModelCard(
            id=model.name,
            created=self._created,
            owned_by="upstream",
            context_length=model.context_length,
            has_chat_template=True,
        )
        return replace(
            card if server is None else server.card,
            input_usd_per_mtok=model.price.input_usd_per_mtok,
            output_usd_per_mtok=model.price.output_usd_per_mtok,
        )

    def _state(self, model: ModelView) -> State:
        if self._is_draining:
            return "draining"
        return model.state if self._is_started else "loading"


def _read_start(headers: Mapping[str, str]) -> Started:
    experts = headers.get("x-moestro-experts")
    return Started(
        model=headers["x-moestro-model"],
        prompt_tokens=0,
        experts=None if experts is None else float(experts),
        headers={name: headers[name] for name in _ABOUT if name in headers},
    )


async def _read_chunks(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Chunk, None]:
    cutter = Cutter()
    async for piece in pieces:
        for event in split(cutter.feed(piece)):
            for chunk in _read_event(event):
                yield chunk


def _read_event(event: bytes) -> Iterator[Chunk]:
    data = read_data(event)
    if not data or data == b"[DONE]":
        return iter(())
    try:
        said: Any = msgspec.json.decode(data)
        if "error" in said:
            raise BackendError(str(said["error"].get("message")))
        return iter(list(read_chunks(said)))
    except (AttributeError, TypeError, ValueError) as error:
        raise BackendError("the answer has an event that cannot be translated") from error


def _read_message(body: bytes) -> str:
    return str(msgspec.json.decode(body)["error"]["message"])
