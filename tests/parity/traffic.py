"""An engine that is given requests and stepped until all have ended, for tests of what they get."""

from collections.abc import Iterator, Sequence

from moestro.engine.engine import Engine
from moestro.engine.request import EngineRequest, Event


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
