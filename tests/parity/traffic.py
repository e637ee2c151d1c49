"""An engine that is given requests and stepped until all have ended, for tests of what they get."""

from collections.abc import Iterator, Sequence
from typing import Any

from moestro.engine.engine import Engine
from moestro.engine.request import EngineRequest, Event, FailEvent, TokensEvent

# By request, bit by bit; a second choice's name ends in "+", a third's in "++".
Answers = dict[str, list[Any]]


def steps(
    engine: Engine, requests: Sequence[EngineRequest], every: int = 0
) -> Iterator[list[Event]]:
    """Yield each step's events; with `every`, one request more is submitted each so many steps."""
    waiting, num_steps = list(requests), 0
    while waiting or engine.has_work:
        while waiting and (not every or num_steps % every == 0):
            engine.submit(waiting.pop(0))
            if every:
                break
        yield engine.step()
        num_steps += 1


def run(engine: Engine, requests: Sequence[EngineRequest], every: int = 0) -> tuple[Answers, int]:
    """Run requests to their ends, one more each so many steps; return answers and steps."""
    answers: Answers = {}
    num_steps = 0
    for events in steps(engine, requests, every):
        num_steps += 1
        for event in events:
            choice = event.choice if isinstance(event, TokensEvent) else 0
            own = answers.setdefault(event.request_id + "+" * choice, [])
            if isinstance(event, TokensEvent):
                own.extend(event.tokens())
            elif isinstance(event, FailEvent):
                own.append(event.message)
    return answers, num_steps
