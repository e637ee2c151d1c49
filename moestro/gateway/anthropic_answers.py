"""Answers in Anthropic's dialect, whole and streamed, as OpenAI's; nothing else is changed.

Next: speaking.py.
"""

import time
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from moestro.gateway.events import DONE, Cutter, Garbage, read_data, split, write_event
from moestro.gateway.faults import Fault
from moestro.gateway.incoming import Incoming

_FINISHES = {"max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter"}
_INPUTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

# What reading raises where something is of another kind than the dialect has there.
_ODD = (AttributeError, TypeError)

Body = dict[str, Any]


class Clock(Protocol):
    """Tells the time in seconds since 1970."""

    def __call__(self) -> float:
        """Return it."""


class TranslatedIncoming:
    """An answer as it comes in from such an upstream, read as one of OpenAI's chats."""

    def __init__(self, incoming: Incoming, *, wants_usage: bool, clock: Clock = time.time) -> None:
        self._incoming = incoming
        self._cutter = Cutter()
        self._stream = _Stream(wants_usage, int(clock()))

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return self._incoming.status

    @property
    def is_stream(self) -> bool:
        """Whether events come."""
        return self._incoming.is_stream

    @property
    def content_type(self) -> str:
        """What its body is said to be."""
        return self._incoming.content_type

    @property
    def retry_after_s(self) -> float | None:
        """When the backend wants to be asked again."""
        return self._incoming.retry_after_s

    @property
    def experts(self) -> float | None:
        """How many experts per token the backend granted."""
        return self._incoming.experts

    async def read(self) -> bytes:
        """Return the next events as OpenAI's; none at the end."""
        while data := await self._incoming.read():
            written = self._translate(data)
            if written:
                return written
        return b""

    async def read_whole(self, most_bytes: int) -> bytes:
        """Return the whole answer as one of OpenAI's; a refusal as it came."""
        body = await self._incoming.read_whole(most_bytes)
        if self.status != 200:
            return body
        try:
            said = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return body
        if not isinstance(said, dict) or said.get("type") != "message":
            return body
        try:
            return msgspec.json.encode(_whole(said, self._stream.created))
        except _ODD as error:
            name = self._incoming.name
            raise Fault("garbage", f"{name} answered with something else than a message") from error

    def close(self) -> None:
        """End it."""
        self._incoming.close()

    def _translate(self, data: bytes) -> bytes:
        try:
            events = split(self._cutter.feed(data))
            return b"".join(each for event in events for each in self._stream.read(event))
        except (Garbage, msgspec.DecodeError, UnicodeDecodeError, RecursionError, *_ODD) as error:
            name = self._incoming.name
            raise Fault("garbage", f"{name} sent what is no event") from error


class _Stream:
    """One stream's events, as they come."""

    def __init__(self, wants_usage: bool, created: int) -> None:
        self.created = created
        self._wants_usage = wants_usage
        self._head: Body = {}
        self._usage: Body = {}
        self._calls: dict[int, int] = {}

    def read(self, event: bytes) -> Iterator[bytes]:
        data = read_data(event)
        if not data:
            yield event
            return
        said: Any = msgspec.json.decode(data)
        match said.get("type"):
            case "message_start":
                yield self._begin(said.get("message") or {})
            case "content_block_start":
                yield from self._open(said.get("index", 0), said.get("content_block") or {})
            case "content_block_delta":
                yield from self._go_on(said.get("index", 0), said.get("delta") or {})
            case "message_delta":
                self._usage |= said.get("usage") or {}
                reason = (said.get("delta") or {}).get("stop_reason")
                yield self._write({}, _FINISHES.get(reason or "", "stop"))
            case "message_stop":
                yield from self._end()
            case "error":
                yield write_event({"error": said.get("error") or {}})

    def _begin(self, message: Body) -> bytes:
        self._usage |= message.get("usage") or {}
        self._head = {
            "id": message.get("id", ""),
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": message.get("model", ""),
        }
        return self._write({"role": "assistant", "content": ""})

    def _open(self, index: int, block: Body) -> Iterator[bytes]:
        if block.get("type") != "tool_use":
            return
        self._calls[index] = len(self._calls)
        function = {"name": block.get("name", ""), "arguments": ""}
        call = {"index": self._calls[index], "id": block.get("id"), "type": "function"}
        yield self._write({"tool_calls": [call | {"function": function}]})

    def _go_on(self, index: int, delta: Body) -> Iterator[bytes]:
        match delta.get("type"):
            case "text_delta":
                yield self._write({"content": delta.get("text", "")})
            case "thinking_delta":
                yield self._write({"reasoning_content": delta.get("thinking", "")})
            case "input_json_delta":
                function = {"arguments": delta.get("partial_json", "")}
                call = {"index": self._calls.get(index, 0), "function": function}
                yield self._write({"tool_calls": [call]})

    def _end(self) -> Iterator[bytes]:
        if self._wants_usage:
            yield write_event(self._head | {"choices": [], "usage": _usage(self._usage)})
        yield DONE

    def _write(self, delta: Body, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return write_event(self._head | {"choices": [choice]})


def _whole(said: Body, created: int) -> Body:
    blocks = said.get("content") or []
    texts = [block.get("text", "") for block in blocks if block.get("type") == "text"]
    thoughts = [block.get("thinking", "") for block in blocks if block.get("type") == "thinking"]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    message: Body = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    finish = _FINISHES.get(said.get("stop_reason") or "", "stop")
    return {
        "id": said.get("id", ""),
        "object": "chat.completion",
        "created": created,
        "model": said.get("model", ""),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": _usage(said.get("usage") or {}),
    }


def _call(block: Body) -> Body:
    arguments = msgspec.json.encode(block.get("input") or {}).decode()
    function = {"name": block.get("name", ""), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _usage(usage: Body) -> Body:
    prompt = sum(usage.get(name) or 0 for name in _INPUTS)
    completion = usage.get("output_tokens") or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.get("cache_read_input_tokens") or 0},
    }
