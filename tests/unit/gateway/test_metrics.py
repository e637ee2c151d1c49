"""What is counted: by model and kind of reason, never by what was asked, never with a key."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from moestro.errors import UnknownModelError
from moestro.gateway.metrics import GatewayMetrics
from tests.unit.gateway.test_choosing import ScriptedPolicy
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import breaks, gateway_over, replies, reset, well


def test_requests_failovers_and_lies_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "sk-secret")

    async def work() -> str:
        registry = CollectorRegistry()
        around = {"metrics": GatewayMetrics(registry)}
        lie = replies(200, {"model": "other", "choices": [{}]})
        behaviors: Any = {"weak": [[breaks(4, reset), well]], "strong": [lie]}
        async with gateway_over(
            behaviors, policy=ScriptedPolicy(), around=around, key="env:SECRET_KEY"
        ) as running:
            await running.stream(model="auto", messages=[{"role": "user", "content": "easy"}])
            await running.ask(model="strong")
            with pytest.raises(UnknownModelError):
                await running.ask(model="secret-name")
        return generate_latest(registry).decode()

    shown = run(work())
    request = 'backend="weak/0",model="weak",outcome="answered",reason="policy",status="200"'
    assert f"moestro:gateway_requests_total{{{request}}} 1.0" in shown
    assert 'moestro:gateway_failovers_total{backend="weak/0"} 1.0' in shown
    assert 'moestro:gateway_other_model_total{backend="strong/0"} 1.0' in shown
    assert 'moestro:gateway_stream_events_total{model="weak"} 12.0' in shown
    assert 'outcome="refused"' in shown
    assert "secret" not in shown
    assert "easy" not in shown
