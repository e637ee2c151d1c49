"""Requests to prompts in token ids: chat template, gap to fill, text as it is; lengths checked.

Knows text and limits, no engine. Next: answers.py for the way back.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from moestro.api.chat import ChatRequest, CompletionRequest, Request, overlong, read_text
from moestro.api.openai_messages import write_message, write_tool
from moestro.errors import CheckpointError, ConfigError, DataError
from moestro.text.template import ChatTemplate
from moestro.text.template import Prompt as Rendered
from moestro.text.tokenizer import Tokenizer

T = TypeVar("T")

# Above this, encoding takes long enough to be felt in the streams of others.
_LONG_CHARACTERS = 8192
_TURN_CHARACTERS = 64
# What a template does with each piece of these takes far longer than to read it.
_MOST_TABLE_CHARACTERS = 2**18
# Special tokens are written by their names.
_LONGEST_NAME = 64
# Normalizers shorten some texts before they become tokens.
_MOST_SHRINKING = 4
_RESERVED = {"self", "messages", "tools", "continue_final"}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt in token ids, the first `num_lead` of which the caller did not write.

    `text` is what the model reads, as far as a template wrote it.
    """

    ids: tuple[int, ...]
    num_lead: int = 0
    text: str = ""


class Prompts:
    """Builds the prompts of one model."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, vocab_size: int, context_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._vocab_size = vocab_size
        self._context_length = context_length
        longest = max(_LONGEST_NAME, *map(len, tokenizer.pieces.table))
        self._most_characters = _MOST_SHRINKING * longest * context_length

    async def build(self, request: Request) -> Prompt:
        """Return the ids that a request's prompt becomes; long texts are read in a thread."""
        if isinstance(request, ChatRequest):
            return await _away(_count_chat(request), lambda: self._build_chat(request))
        if isinstance(request.prompt, tuple):
            return self._take_ids(request, request.prompt)
        size = len(request.prompt) + len(request.suffix or "")
        self._check_characters(request, size)
        return await _away(size, lambda: self._build_text(request))

    async def read(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens by their names; many in a thread."""
        return await _away(
            len(ids), lambda: self._tokenizer.decode_named(self._checked(ids, "tokens"))
        )

    async def show(self, ids: Sequence[int]) -> list[str]:
        """Return each token as a person reads it; many in a thread."""
        show = self._tokenizer.token_text
        return await _away(len(ids), lambda: list(map(show, self._checked(ids, "tokens"))))

    def _build_chat(self, request: ChatRequest) -> Prompt:
        taken = _RESERVED & set(request.template_variables)
        if taken:
            raise ConfigError(
                f"the chat template's {min(taken)} cannot be set: leave it out",
                param="chat_template_kwargs",
            )
        self._check_characters(request, _count_characters(request))
        rendered = self._render(request)
        self._check_characters(request, len(rendered.text))
        ids = rendered.encode(self._tokenizer)
        if not ids:
            raise DataError("the conversation is empty: send a message with text", param="messages")
        lead = self._lead(request)
        whole = (*lead, *self._cut(request, ids, len(lead)))
        return Prompt(ids=whole, num_lead=len(whole), text=rendered.text)

    def _render(self, request: ChatRequest) -> Rendered:
        is_using = request.tool_choice.mode != "none"
        tools = [write_tool(tool) for tool in request.tools] if is_using else None
        size = len(json.dumps([tools, request.template_variables]))
        if size > _MOST_TABLE_CHARACTERS:
            raise DataError(
                f"tools and chat_template_kwargs have {size} characters as JSON,"
                f" limit {_MOST_TABLE_CHARACTERS}: send fewer"
            )
        messages = [write_message(message) for message in request.messages]
        try:
            return self._template.render(
                messages,
                tools=tools or None,
                continue_final=request.continues_final,
                **{"add_generation_prompt": request.has_generation_prompt}
                | dict(request.template_variables),
            )
        except CheckpointError as error:
            # A template that never comes to its end, and a long conversation in one that would.
            raise DataError(f"{error}, or send less") from error

    def _build_text(self, request: CompletionRequest) -> Prompt:
        assert isinstance(request.prompt, str)
        lead = self._lead(request)
        splits = request.splits_special_tokens
        encode = self._tokenizer.encode if splits else self._tokenizer.encode_trusted
        ids = encode(request.prompt)
        if request.suffix is None:
            kept = self._cut(request, ids, len(lead))
            return Prompt(ids=(*lead, *kept), num_lead=len(lead))
        fim = self._tokenizer.fim
        if fim is None:
            raise ConfigError(
                "this model's tokenizer has no fill-in-the-middle tokens: leave out suffix",
                param="suffix",
            )
        ids = fim.prompt(ids, encode(request.suffix))
        return Prompt(ids=(*lead, *ids), num_lead=len(lead))

    def _take_ids(self, request: CompletionRequest, ids: tuple[int, ...]) -> Prompt:
        if request.suffix is not None:
            raise ConfigError(
                "suffix needs a prompt in text, not in token ids: send text", param="suffix"
            )
        if not ids:
            raise DataError("the prompt has no tokens: send at least one", param="prompt")
        ids = tuple(self._cut(request, ids))
        # Before a look at each: there may be a million.
        if len(ids) > self._context_length:
            raise overlong(request, f"{len(ids)} tokens", self._context_length)
        return Prompt(ids=tuple(self._checked(ids, "prompt")))

    def _lead(self, request: Request) -> list[int]:
        return [self._tokenizer.bos_id] if request.has_special_tokens else []

    def _cut(self, request: Request, ids: Sequence[int], num_lead: int = 0) -> Sequence[int]:
        """Return the last of a prompt's tokens, as many as it may have behind its lead."""
        options = request.options
        most = options.truncate_prompt_tokens
        if most is None:
            return ids
        if most == -1:
            shortest = max(1, options.sampling.min_tokens or 0)
            answer = shortest if options.max_tokens is None else options.max_tokens
            most = max(1, self._context_length - answer)
        return ids[max(0, len(ids) + num_lead - most) :]

    def _checked(self, ids: Sequence[int], param: str) -> Sequence[int]:
        outside = [token for token in ids if not 0 <= token < self._vocab_size]
        if outside:
            raise DataError(
                f"token {outside[0]} is outside the vocabulary of {self._vocab_size}: send others",
                param=param,
            )
        return ids

    def _check_characters(self, request: Request, size: int) -> None:
        # No way of cutting so many into tokens fits, and to look for one takes seconds.
        if size > self._most_characters:
            raise overlong(request, f"{size} characters", self._context_length)


async def _away(size: int, build: Callable[[], T]) -> T:
    return build() if size < _LONG_CHARACTERS else await asyncio.to_thread(build)


def _count_chat(request: ChatRequest) -> int:
    if request.tools or request.template_variables:
        # To measure them may take longer than a thread does.
        return _LONG_CHARACTERS
    return _count_characters(request) + _TURN_CHARACTERS * len(request.messages)


def _count_characters(request: ChatRequest) -> int:
    texts = (
        text or ""
        for message in request.messages
        for text in (
            read_text(message),
            message.name,
            message.reasoning,
            *(call.arguments for call in message.tool_calls),
        )
    )
    return sum(map(len, texts))
