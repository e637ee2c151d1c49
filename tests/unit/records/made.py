"""Records for tests: one answered request, with whatever a test wants otherwise."""

from typing import Any

from moestro.api.record import Record

# 2026-11-26, noon.
NOON = 1_795_694_400.0


def make_record(number: int = 0, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "request_id": f"request-{number}",
        "began_at": NOON + number,
        "path": "/v1/chat/completions",
        "caller": "alice",
        "asked": "auto",
        "model": "small",
        "backend": "small/0",
        "reason": "policy",
        "outcome": "answered",
        "status": 200,
        "is_streamed": True,
        "digest": "d1",
        "scores": {"small": 0.75, "large": 0.8},
        "threshold": 0.5,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "cost_usd": 0.5,
        "strongest_cost_usd": 2.0,
        "whole_s": 0.25,
        "num_attempts": 1,
    }
    return Record(**{**values, **changes})
