"""A request as OpenAI's JSON, and the events of OpenAI's streams as Chunks.

The reverse of api/openai_requests.py and api/openai_answers.py. Next: translated.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from moestro.api.chat import (
    ChatRequest,
    CompletionRequest,
    Constraint,
    Content,
    Image,
    Message,
    Options,
    Request,
)
from moestro.api.chunks import Chunk, Finish, Token, ToolCallDelta, Usage
from moestro.api.openai_messages import write_message, write_tool

_FINISHES: Mapping[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


def write_request(request: Request) -> dict[str, Any]:
    """Return the body that asks for the same, as a stream with its usage."""
    body: dict[str, Any] = {
        "model": request.model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if isinstance(request, CompletionRequest):
        prompt = request.prompt
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        optional = {
            "suffix": request.suffix,
            "echo": request.echo or None,
            "add_special_tokens": None if request.has_special_tokens else False,
            "split_special_tokens": None if request.splits_special_tokens else False,
        }
        body |= {"logprobs": request.options.top_logprobs}
    else:
        body["messages"] = list(map(write_message, _move_images(request.messages)))
        optional = _write_tools(request)
        if request.continues_final:
            body["continue_final_message"] = True
        if request.has_special_tokens:
            body["add_special_tokens"] = True
        if request.continues_final or not request.has_generation_prompt:
            body["add_generation_prompt"] = False
        if request.options.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.options.top_logprobs}
    is_chat = isinstance(request, ChatRequest)
    body |= optional | _write_options(request.options)
    body |= _write_constraint(request.options.constraint, is_chat=is_chat)
    return {name: value for name, value in body.items() if value is not None}


def _move_images(messages: Sequence[Message]) -> Iterator[Message]:
    """Yield turns of which only users' show images: OpenAI's turns of tools have text alone.

    What tools showed follows their last turn, as the beginning of what the user says then.
    """
    shown: list[str | Image] = []
    for message in messages:
        if message.role == "tool":
            parts = _list_parts(message.content)
            shown += [part for part in parts if isinstance(part, Image)]
            texts = [part for part in parts if isinstance(part, str)]
            yield replace(message, content="\n".join(texts))
        elif shown and message.role == "user":
            yield replace(message, content=(*shown, *_list_parts(message.content)))
            shown = []
        else:
            if shown:
                yield Message(role="user", content=tuple(shown))
                shown = []
            yield message
    if shown:
        yield Message(role="user", content=tuple(shown))


def _list_parts(content: Content | None) -> Sequence[str | Image]:
    return content if isinstance(content, tuple) else (content,) if content else ()


def _write_tools(request: ChatRequest) -> dict[str, Any]:
    written: dict[str, Any] = {"chat_template_kwargs": dict(request.template_variables) or None}
    if not request.tools:
        return written
    written["tools"] = [write_tool(tool) for tool in request.tools]
    choice = request.tool_choice
    named = {"type": "function", "function": {"name": choice.name}}
    written["tool_choice"] = named if choice.mode == "named" else choice.mode
    if not request.has_parallel_tool_calls:
        written["parallel_tool_calls"] = False
    return written


def _write_options(options: Options) -> dict[str, Any]:
    sampling = {name: value for name, value in vars(options.sampling).items() if value is not None}
    if "logit_bias" in sampling:
        biases = sampling["logit_bias"].items()
        sampling["logit_bias"] = {str(token_id): bias for token_id, bias in biases}
    return sampling | {
        "max_tokens": options.max_tokens,
        "n": options.num_choices if options.num_choices > 1 else None,
        "stop": list(options.stops) or None,
        "stop_token_ids": list(options.stop_token_ids) or None,
        "include_stop_str_in_output": options.keeps_stop or None,
        "skip_special_tokens": False if options.shows_special else None,
        "bad_words": list(options.bad_words) or None,
        "truncate_prompt_tokens": options.truncate_prompt_tokens,
        "experts": options.experts,
        "priority": options.priority or None,
        "xray": options.wants_xray or None,
    }


def _write_constraint(constraint: Constraint | None, *, is_chat: bool) -> dict[str, Any]:
    if constraint is None:
        return {}
    match constraint.kind:
        case "json_object" if is_chat:
            return {"response_format": {"type": "json_object"}}
        case "json_object":
            return {"structured_outputs": {"json_object": True}}
        case "json_schema" if is_chat:
            schema = {"name": "answer", "schema": msgspec.Raw(constraint.source.encode())}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case "json_schema":
            return {"structured_outputs": {"json": msgspec.Raw(constraint.source.encode())}}
        case "regex":
            return {"structured_outputs": {"regex": constraint.source}}
        case "lark":
            return {"structured_outputs": {"grammar": constraint.source}}


def read_chunks(event: Mapping[str, Any]) -> Iterator[Chunk]:
    """Yield what an event says."""
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {"content": choice.get("text")}
        calls = tuple(_read_call(call) for call in delta.get("tool_calls") or ())
        finish = choice.get("finish_reason")
        stop = choice.get("stop_reason")
        yield Chunk(
            index=choice.get("index") or 0,
            text=_read_text(delta.get("content")),
            reasoning=_read_text(delta.get("reasoning_content") or delta.get("reasoning")),
            tool_calls=calls,
            tokens=tuple(_read_tokens(choice.get("logprobs"))),
            finish=None if finish is None else _FINISHES.get(finish, "stop"),
            stop=stop if isinstance(stop, str) else None,
        )
    usage = event.get("usage")
    if isinstance(usage, Mapping):
        yield Chunk(usage=_read_usage(usage))


def _read_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _read_call(call: Mapping[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(
        index=call.get("index") or 0,
        id=call.get("id"),
        name=function.get("name"),
        arguments=function.get("arguments") or "",
    )


def _read_tokens(logprobs: object) -> Iterator[Token]:
    if not isinstance(logprobs, Mapping):
        return
    for entry in logprobs.get("content") or ():
        text = str(entry.get("token", ""))
        data = entry.get("bytes")
        yield Token(
            # Its number is the backend's own, and not told.
            token_id=-1,
            text=text,
            data=bytes(data) if isinstance(data, list) else text.encode(),
            logprob=entry.get("logprob"),
        )


def _read_usage(usage: Mapping[str, Any]) -> Usage:
    prompt = usage.get("prompt_tokens_details") or {}
    completion = usage.get("completion_tokens_details") or {}
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=prompt.get("cached_tokens") or 0,
        reasoning_tokens=completion.get("reasoning_tokens") or 0,
        mean_experts=usage.get("mean_experts"),
    )
