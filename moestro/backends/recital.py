"""A script, and how it is recited: one choice of an answer, token by token.

Knows nothing of other requests. Next: scripted.py, scripted_tokens.py.
"""

import asyncio
import codecs
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from moestro.api.cards import ModelCard
from moestro.api.chat import (
    ChatRequest,
    CompletionRequest,
    Request,
    ToolCall,
    overlong,
    read_text,
)
from moestro.api.chunks import Chunk, Token, ToolCallDelta, Usage
from moestro.backends.scripted_tokens import MOST_BYTES, build_token, decode, encode
from moestro.errors import MoestroError

_ARGUMENTS_PIECE = 8


@dataclass(frozen=True, kw_only=True)
class Script:
    """One answer, and how it comes.

    The request waits `queue_s`, then each token takes `delay_s`. `error` is raised after
    `error_after` tokens, or before the answer starts where that is None.
    """

    text: str = "Two experts are better than one."
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    queue_s: float = 0.0
    delay_s: float = 0.0
    cached_tokens: int = 0
    error: MoestroError | None = None
    error_after: int | None = None


class Recital:
    """One choice as it is recited: `chunks` gives it piece by piece and counts on the way."""

    def __init__(
        self,
        index: int,
        script: Script,
        request: Request,
        card: ModelCard,
        experts: float,
        count: Callable[[Token], None],
    ) -> None:
        """`count` is told of each token that is generated."""
        self.script = script
        self.num_tokens = 0
        self.num_reasoning = 0
        self.experts_taken = 0.0
        self._index = index
        self._request = request
        self._card = card
        self._experts = experts
        self._count = count

    def chunks(self) -> Iterator[Chunk]:
        """Yield an echo if one is asked for, a chunk per token, and the finish."""
        options = self._request.options
        room = self._card.context_length
        limit = room if options.max_tokens is None else min(options.max_tokens, room)
        yield from self._echo()
        yield from self._say(self.script.reasoning, limit, is_reasoning=True)
        text, stop = _cut(self.script.text, options.stops)
        if options.keeps_stop and stop:
            text += stop
        if options.sampling.ignore_eos and text:
            text, stop = text * (limit // len(encode(text)) + 1), None
        yield from self._say(text, limit, is_reasoning=False)
        if self.num_tokens < len(encode(self.script.reasoning)) + len(encode(text)):
            yield Chunk(index=self._index, finish="length")
        elif self.script.tool_calls:
            yield from self._call()
            yield Chunk(index=self._index, finish="tool_calls")
        else:
            yield Chunk(index=self._index, finish="stop", stop=stop)

    def _echo(self) -> Iterator[Chunk]:
        if not (isinstance(self._request, CompletionRequest) and self._request.echo):
            return
        ids = prompt_ids(self._request, self._card.context_length)
        tokens = [self._build(token_id, place) for place, token_id in enumerate(ids)]
        if tokens:
            tokens[0] = replace(tokens[0], logprob=None, alternatives=())
        yield Chunk(index=self._index, text=decode(ids), tokens=tuple(tokens), is_echo=True)

    def _say(self, text: str, limit: int, *, is_reasoning: bool) -> Iterator[Chunk]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        ids = encode(text)[: limit - self.num_tokens]
        for place, token_id in enumerate(ids):
            token = self._build(token_id, self.num_tokens)
            piece = decoder.decode(token.data, final=place == len(ids) - 1)
            self.num_tokens += 1
            self.num_reasoning += is_reasoning
            self.experts_taken += token.num_experts or 0.0
            self._count(token)
            if is_reasoning:
                yield Chunk(index=self._index, reasoning=piece, tokens=(token,))
            else:
                yield Chunk(index=self._index, text=piece, tokens=(token,))

    def _call(self) -> Iterator[Chunk]:
        for place, call in enumerate(self.script.tool_calls):
            first = ToolCallDelta(index=place, id=call.id, name=call.name)
            yield Chunk(index=self._index, tool_calls=(first,))
            for start in range(0, len(call.arguments), _ARGUMENTS_PIECE):
                piece = call.arguments[start : start + _ARGUMENTS_PIECE]
                delta = ToolCallDelta(index=place, arguments=piece)
                yield Chunk(index=self._index, tool_calls=(delta,))

    def _build(self, token_id: int, place: int) -> Token:
        top = self._request.options.top_logprobs
        return build_token(token_id, place, self._card, top=top, experts=self._experts)


async def interleave(recitals: Sequence[Recital]) -> AsyncGenerator[Chunk, None]:
    """Give a token of each choice in turn, each as slowly as its script says; or its error."""
    live = [(recital, recital.chunks()) for recital in recitals]
    while live:
        for recital, chunks in tuple(live):
            error = recital.script.error
            if error is not None and recital.num_tokens >= (recital.script.error_after or 0):
                raise error.with_traceback(None)
            chunk = next(chunks, None)
            if chunk is None:
                live.remove((recital, chunks))
            else:
                await asyncio.sleep(recital.script.delay_s if chunk.tokens else 0)
                yield chunk


def prompt_ids(request: Request, limit: int) -> list[int]:
    """Return a request's token ids; messages become lines like `user: hello`."""
    if isinstance(request, ChatRequest):
        lines = (f"{each.role}: {read_text(each)}" for each in request.messages)
        return _encode_prompt(request, "\n".join(lines), limit)
    if isinstance(request.prompt, str):
        return _encode_prompt(request, request.prompt, limit)
    _check_length(request, len(request.prompt), limit)
    # Whoever sends an id that no text has learns it before the answer starts.
    decode(request.prompt)
    return list(request.prompt)


def total_usage(recitals: Sequence[Recital], prompt_tokens: int, cached_tokens: int) -> Usage:
    """Sum up what all choices of a request cost."""
    num = sum(recital.num_tokens for recital in recitals)
    experts = sum(recital.experts_taken for recital in recitals)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=num,
        cached_tokens=cached_tokens,
        reasoning_tokens=sum(recital.num_reasoning for recital in recitals),
        mean_experts=experts / num if num and experts else None,
    )


def _encode_prompt(request: Request, text: str, limit: int) -> list[int]:
    # Before any work on it: to cut a few megabytes into tokens takes seconds.
    _check_length(request, len(text) // MOST_BYTES, limit)
    ids = encode(text)
    _check_length(request, len(ids), limit)
    return ids


def _check_length(request: Request, num_tokens: int, limit: int) -> None:
    if num_tokens > limit:
        raise overlong(request, f"{num_tokens} tokens or more", limit)


def _cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    places = [(text.index(stop), stop) for stop in stops if stop in text]
    if not places:
        return text, None
    place, stop = min(places)
    return text[:place], stop
