"""Watches that run until something has come of it."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

LIMIT_S = 30


class Watch(Protocol):
    """What follows the records until it is cancelled."""

    def run(self) -> Coroutine[Any, Any, None]:
        """Follow."""
        ...


async def follow(*watches: Watch, until: Callable[[], bool]) -> None:
    """Run watches beside each other until a condition holds; TimeoutError if it never does."""
    tasks = [asyncio.create_task(watch.run()) for watch in watches]
    try:
        async with asyncio.timeout(LIMIT_S):
            while not until():
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
