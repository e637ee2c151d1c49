"""A gateway that answers each model with a text of the test's choice, and finished requests.

Next: test_floor_watch.py.
"""

import json
from types import SimpleNamespace
from typing import Any

import msgspec

from moestro.api.relay import Call, Reply
from moestro.errors import BackendError
from moestro.gateway.asked import read_call
from moestro.gateway.books import Finished
from moestro.gateway.choosing import ModelChoice
from tests.unit.records.made import make_record


class ScriptedGateway:
    """Answers by model; a model without a text fails, one with a number answers that status."""

    def __init__(self, strongest: str | None = "large", **answers: str | int) -> None:
        self.chooser = SimpleNamespace(strongest=strongest)
        self.calls: list[Call] = []
        self._answers = answers

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(call.body) for call in self.calls]

    async def relay(self, call: Call) -> Reply:
        self.calls.append(call)
        answer = self._answers.get(json.loads(call.body)["model"])
        if answer is None:
            raise BackendError("nobody answers")
        if isinstance(answer, int):
            return Reply(status=answer, headers={}, body=b"{}")
        choice = {"message": {"role": "assistant", "content": answer}}
        return Reply(status=200, headers={}, body=msgspec.json.encode({"choices": [choice]}))


def finish(
    answer: str = "42", *, is_auto: bool = True, is_distrusted: bool = False, **record: Any
) -> Finished:
    """Return a request that the small model answered."""
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "six times seven?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    }
    call = Call(path="/v1/chat/completions", body=json.dumps(body).encode(), request_id="r")
    return Finished(
        record=make_record(**record),
        asked=read_call(call),
        choice=ModelChoice(
            models=("small", "large"),
            reason="policy",
            is_auto=is_auto,
            is_distrusted=is_distrusted,
        ),
        answer=answer,
    )
