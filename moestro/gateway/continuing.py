"""A stream that goes on at another backend: what that one is asked, and how its events join in.

Pure. The request is the client's own, with the answer so far as an open last turn (in vLLM's and
SGLang's words), or behind a completion's prompt. Next: failover.py.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from moestro.gateway.asked import Asked
from moestro.gateway.events import DONE, is_end, read_data, write_event
from moestro.gateway.told import Told

_LIMITS = ("max_tokens", "max_completion_tokens", "min_tokens")
_IDENTITY = ("id", "created", "model", "object")


def changes_to_continue(asked: Asked, text: str, num_tokens: int) -> dict[str, Any]:
    """Return the fields to change so that a backend goes on behind `text`."""
    changes: dict[str, Any] = {}
    for name in _LIMITS:
        limit = asked.number(name)
        if limit is not None:
            changes[name] = max(0, limit - num_tokens)
    if asked.kind == "completion":
        return changes | {"prompt": asked.look("prompt") + text}
    turns = msgspec.json.decode(asked.fields["messages"], type=list[msgspec.Raw])
    turn: dict[str, Any] = {"role": "assistant", "content": text}
    if asked.has("continue_final_message"):
        # The client's own last turn is open already.
        begun = msgspec.json.decode(turns.pop())
        turn = begun | {"content": f"{begun.get('content') or ''}{text}"}
    changes["messages"] = [*turns, turn]
    return changes | {"continue_final_message": True, "add_generation_prompt": False}


def is_spent(asked: Asked, num_tokens: int) -> bool:
    """Tell whether an answer has all the tokens that it may have."""
    limits = [asked.number(name) for name in _LIMITS[:2]]
    return any(limit is not None and num_tokens >= limit for limit in limits)


class Graft:
    """Makes the events of a backend that came later look like those of the one that began."""

    def __init__(self, told: Told, model: str | None = None) -> None:
        """`model`: what the events say who answers, where that has changed."""
        head = told.head
        self._num_before = told.go_on()
        self._identity: dict[str, Any] = {}
        if head is not None:
            self._identity = {name: getattr(head, name) for name in _IDENTITY}
        if model is not None:
            self._identity["model"] = model

    def join(self, event: bytes) -> bytes:
        """Return an event as it goes on; none where it only opens a turn that is open already."""
        if is_end(event):
            return DONE
        data = read_data(event)
        if not data:
            return event
        said: Any = msgspec.json.decode(data)
        if not isinstance(said, dict):
            return event
        choices = [choice for choice in map(_without_role, said.get("choices") or ()) if choice]
        usage = said.get("usage")
        if not choices and not usage:
            return b""
        said |= self._identity | {"choices": choices}
        if isinstance(usage, dict):
            said["usage"] = self._add_up(usage)
        return write_event(said)

    def _add_up(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        added = dict(usage)
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(completion, int):
            added["prompt_tokens"] = max(0, prompt - self._num_before)
            added["completion_tokens"] = completion + self._num_before
            added["total_tokens"] = added["prompt_tokens"] + added["completion_tokens"]
        return added


def last_event(told: Told, asked: Asked) -> bytes:
    """Write the event that ends a choice which has all its tokens."""
    head = told.head
    identity = {name: getattr(head, name) for name in _IDENTITY} if head is not None else {}
    said: dict[str, Any] = {"text": ""} if asked.kind == "completion" else {"delta": {}}
    said |= {"index": 0, "finish_reason": "length"}
    return write_event(identity | {"choices": [said]})


def _without_role(choice: dict[str, Any]) -> dict[str, Any] | None:
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return choice
    rest = {name: value for name, value in delta.items() if name != "role"}
    says_nothing = not any(rest.values()) and choice.get("finish_reason") is None
    return None if says_nothing else choice | {"delta": rest}
