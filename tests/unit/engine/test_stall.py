"""What streams feel of a long prompt, by a clock that only the model moves.

A step's time has the shape that was measured on a model of 8 layers: a toll for any prompt, as
tokens of prompts visit experts that the decodes alone do not; and the MTP module behind each of
its parts, which the next step has to wait for.
"""

from typing import Any

import pytest

from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.request import EngineRequest, TokensEvent
from moestro.ops.rows import RowMultiples
from tests.builders import random_model, random_tokens, tiny_config

SHAPE = tiny_config(max_position_embeddings=1024, num_nextn_predict_layers=1)
STREAMS = 4


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def spend_step(self, _module: Any, arguments: tuple[Any, ...]) -> None:
        num_prompt = arguments[0].shape[1] - STREAMS
        self.now_s += 0.0092 + (0.0024 + 0.0003 * num_prompt if num_prompt > 0 else 0)

    def spend_module(self, _module: Any, arguments: tuple[Any, ...]) -> None:
        self.now_s += 0.0012 + 0.00005 * arguments[0].shape[1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(clock: Clock) -> Engine:
    model = random_model(SHAPE)
    model.register_forward_pre_hook(clock.spend_step)
    model.mtp[0].register_forward_pre_hook(clock.spend_module)
    config = EngineConfig(cache=CacheConfig(block_size=16, num_tokens=8192))
    return Engine(model, config, clock=clock, multiples=RowMultiples())


def ask(name: str, num_prompt: int, max_tokens: int) -> EngineRequest:
    return EngineRequest(
        id=name,
        prompt=tuple(random_tokens(SHAPE, num_prompt, seed=num_prompt).tolist()),
        max_tokens=max_tokens,
        sampling=Sampling(temperature=0, ignore_eos=True),
    )


def gaps_s(engine: Engine, clock: Clock, until: str | None, num_steps: int) -> list[float]:
    """Step on until a request has its token, or so many times; return the time of each step."""
    gaps = []
    for _ in range(num_steps):
        start_s = clock()
        events = engine.step()
        gaps.append(clock() - start_s)
        if any(isinstance(event, TokensEvent) and event.request_id == until for event in events):
            break
    return gaps


def test_gaps_beside_a_long_prompt_are_at_most_twice_as_long(engine: Engine, clock: Clock) -> None:
    for index in range(STREAMS):
        engine.submit(ask(f"stream{index}", 20 + index, 600))
    gaps_s(engine, clock, None, 80)
    for turn in range(3):
        before = sorted(gaps_s(engine, clock, None, 40))
        engine.submit(ask(f"long{turn}", 500 + turn, 1))
        during = sorted(gaps_s(engine, clock, f"long{turn}", 200))
        assert len(during) < 90, "the prompt gets on"
        assert during[int(0.95 * len(during))] <= 1.9 * before[len(before) // 2]
        # More would do the streams no harm.
        assert during[len(during) // 2] >= 1.6 * before[len(before) // 2]
