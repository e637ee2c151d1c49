"""An answer as OpenAI's Responses API tells it: whole, or as the events of a stream.

The same object gives both, so that they cannot differ. Knows no HTTP. Next: response_items.py,
server/responses.py.
"""

from dataclasses import dataclass

from moestro.api.chunks import Chunk, Finish, Started, Token, ToolCallDelta, Usage
from moestro.api.dialect import Part, given
from moestro.api.response_items import Body, CallItem, Item, MessageItem, ReasoningItem, Status
from moestro.api.responses import FunctionParam, ResponsesRequest


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes a response this one: a random name for it and its items, and its second."""

    name: str
    created: int


class ResponseAnswer:
    """One answer as it grows: what comes in gives the events that tell of it.

    `body` is the whole as far as it has come.
    """

    def __init__(self, identity: Identity, asked: ResponsesRequest, started: Started) -> None:
        self._identity = identity
        self._asked = asked
        self._started = started
        self._items: list[Item] = []
        self._is_open = False
        self._pending: list[Token] = []
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self._error: Body | None = None
        self._num_events = 0

    def start(self) -> list[Body]:
        """Return the first events."""
        kinds = ("response.created", "response.in_progress")
        return [self._number({"type": kind, "response": self.body()}) for kind in kinds]

    def push(self, chunk: Chunk) -> list[Body]:
        """Take the next piece; return its events."""
        events = []
        if chunk.reasoning:
            events += self._think(chunk.reasoning)
        if chunk.text:
            events += self._say(chunk)
        elif not chunk.reasoning and not chunk.tool_calls:
            # Half a character, or what may yet become a stop string: its text comes later.
            self._pending += chunk.tokens
        for delta in chunk.tool_calls:
            events += self._call(delta)
        self._finish = chunk.finish or self._finish
        self._usage = chunk.usage or self._usage
        return events

    def end(self) -> list[Body]:
        """Return the last events."""
        kind = f"response.{self._status()}"
        events = self._close(self._item_status())
        return [*events, self._number({"type": kind, "response": self.body()})]

    def fail(self, status: int, message: str) -> list[Body]:
        """Return the last events of an answer that cannot go on."""
        events = self._close("incomplete")
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        self._error = {"code": code, "message": message}
        return [*events, self._number({"type": "response.failed", "response": self.body()})]

    def body(self) -> Body:
        """Return the response."""
        is_cut = self._status() == "incomplete"
        return {
            "id": f"resp_{self._identity.name}",
            "object": "response",
            "created_at": self._identity.created,
            "status": self._status(),
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": self._started.model,
            "output": self._output(),
            "usage": None if self._usage is None else _write_usage(self._usage),
            **_echo(self._asked),
        }

    def _think(self, piece: str) -> list[Body]:
        events = []
        if not (self._is_open and isinstance(self._items[-1], ReasoningItem)):
            events = self._open(ReasoningItem(self._item_id("rs")))
        return [*events, self._place(self._items[-1].add(piece))]

    def _say(self, chunk: Chunk) -> list[Body]:
        events = []
        if not (self._is_open and isinstance(self._items[-1], MessageItem)):
            has_logprobs = any(token.logprob is not None for token in chunk.tokens)
            events = self._open(MessageItem(self._item_id("msg"), has_logprobs=has_logprobs))
        tokens = (*self._pending, *chunk.tokens)
        self._pending = []
        return [*events, self._place(self._items[-1].add(chunk.text, tokens))]

    def _call(self, delta: ToolCallDelta) -> list[Body]:
        events = []
        latest = self._items[-1] if self._is_open else None
        if not (isinstance(latest, CallItem) and latest.index == delta.index):
            events = self._open(CallItem(self._item_id("fc"), delta))
        if not delta.arguments:
            return events
        return [*events, self._place(self._items[-1].add(delta.arguments))]

    def _open(self, item: Item) -> list[Body]:
        events = self._close("completed")
        self._items.append(item)
        self._is_open = True
        added = {"type": "response.output_item.added", "item": item.body("in_progress")}
        return [*events, self._place(added), *map(self._place, item.opening())]

    def _close(self, status: Status) -> list[Body]:
        if not self._is_open:
            return []
        self._is_open = False
        item = self._items[-1]
        done = {"type": "response.output_item.done", "item": item.body(status)}
        return [*map(self._place, item.closing()), self._place(done)]

    def _output(self) -> list[Body]:
        if not self._items:
            return []
        latest: Status = "in_progress" if self._is_open else self._item_status()
        return [
            *(item.body("completed") for item in self._items[:-1]),
            self._items[-1].body(latest),
        ]

    def _place(self, event: Body) -> Body:
        is_item = event["type"].startswith("response.output_item.")
        name = {} if is_item else {"item_id": self._items[-1].id}
        return self._number({**event, **name, "output_index": len(self._items) - 1})

    def _number(self, event: Body) -> Body:
        event["sequence_number"] = self._num_events
        self._num_events += 1
        return event

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._identity.name}_{len(self._items)}"

    def _item_status(self) -> Status:
        return "incomplete" if self._status() in ("incomplete", "failed") else "completed"

    def _status(self) -> str:
        if self._error is not None:
            return "failed"
        if self._finish is None:
            return "in_progress"
        return "incomplete" if self._finish == "length" else "completed"


def _write_usage(usage: Usage) -> Body:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "mean_experts": usage.mean_experts,
    }


def _echo(asked: ResponsesRequest) -> Body:
    """Return what a response repeats of its request."""
    choice = asked.tool_choice or "auto"
    form = asked.text.format if asked.text and asked.text.format else None
    effort = asked.reasoning.effort if asked.reasoning else None
    return {
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": effort, "summary": None},
        # Whatever was asked: nothing is kept.
        "store": False,
        "temperature": asked.temperature,
        "text": {"format": _dump(form) if form else {"type": "text"}},
        "tool_choice": choice if isinstance(choice, str) else _dump(choice),
        "tools": [_write_tool(tool) for tool in asked.tools or ()],
        "top_logprobs": given(asked.top_logprobs, 0),
        "top_p": asked.top_p,
        "truncation": "disabled",
        "user": asked.user,
    }


def _write_tool(tool: FunctionParam) -> Body:
    return {"description": None, "parameters": None, "strict": None} | _dump(tool)


def _dump(part: Part) -> Body:
    return part.model_dump(by_alias=True, exclude_none=True)
