"""Requests to prompts in token ids: chat template, gap to fill, text as it is; lengths checked.

Knows text and limits, no engine. Next: answers.py for the way back.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from moestro.api.chat import ChatRequest, CompletionRequest, Message, Request, Tool
from moestro.errors import ConfigError, DataError
from moestro.text.template import ChatTemplate
from moestro.text.tokenizer import Tokenizer

T = TypeVar("T")

# Above this, encoding takes long enough to be felt in the streams of others.
_LONG_CHARACTERS = 8192
_RESERVED = {"messages", "tools", "continue_final"}


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

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._vocab_size = vocab_size

    async def build(self, request: Request) -> Prompt:
        """Return the ids that a request's prompt becomes; long texts are read in a thread."""
        if isinstance(request, ChatRequest):
            return await _away(_count_chat(request), lambda: self._build_chat(request))
        if isinstance(request.prompt, tuple):
            return self._take_ids(request, request.prompt)
        size = len(request.prompt) + len(request.suffix or "")
        return await _away(size, lambda: self._build_text(request))

    def _build_chat(self, request: ChatRequest) -> Prompt:
        taken = _RESERVED & set(request.template_variables)
        if taken:
            raise ConfigError(f"the chat template's {min(taken)} cannot be set: leave it out")
        is_using = request.tool_choice.mode != "none"
        tools = [describe_tool(tool) for tool in request.tools] if is_using else None
        rendered = self._template.render(
            [_describe_message(message) for message in request.messages],
            tools=tools or None,
            **request.template_variables,
        )
        ids = tuple(rendered.encode(self._tokenizer))
        if not ids:
            raise DataError("the conversation is empty: send a message with text")
        return Prompt(ids=ids, num_lead=len(ids), text=rendered.text)

    def _build_text(self, request: CompletionRequest) -> Prompt:
        assert isinstance(request.prompt, str)
        lead = [self._tokenizer.bos_id]
        ids = self._tokenizer.encode(request.prompt)
        if request.suffix is None:
            return Prompt(ids=(*lead, *ids), num_lead=len(lead))
        fim = self._tokenizer.fim
        if fim is None:
            raise ConfigError(
                "this model's tokenizer has no fill-in-the-middle tokens: leave out suffix"
            )
        ids = fim.prompt(ids, self._tokenizer.encode(request.suffix))
        return Prompt(ids=(*lead, *ids), num_lead=len(lead))

    def _take_ids(self, request: CompletionRequest, ids: tuple[int, ...]) -> Prompt:
        if request.suffix is not None:
            raise ConfigError("suffix needs a prompt in text, not in token ids: send text")
        if not ids:
            raise DataError("the prompt has no tokens: send at least one")
        outside = [token for token in ids if not 0 <= token < self._vocab_size]
        if outside:
            raise DataError(
                f"token {outside[0]} is outside the vocabulary of {self._vocab_size}: send others"
            )
        return Prompt(ids=ids)


async def _away(size: int, build: Callable[[], T]) -> T:
    return build() if size < _LONG_CHARACTERS else await asyncio.to_thread(build)


def _count_chat(request: ChatRequest) -> int:
    return sum(len(message.content) for message in request.messages) + sum(
        len(str(tool.parameters)) for tool in request.tools
    )


def _describe_message(message: Message) -> Mapping[str, Any]:
    """Write a message in OpenAI's shape, which chat templates expect."""
    described: dict[str, Any] = {"role": message.role, "content": message.content}
    optional = {
        "name": message.name,
        "reasoning_content": message.reasoning,
        "tool_call_id": message.tool_call_id,
    }
    described |= {key: value for key, value in optional.items() if value is not None}
    if message.tool_calls:
        described["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return described


def describe_tool(tool: Tool) -> Mapping[str, Any]:
    """Write a function in OpenAI's shape."""
    described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": described}
