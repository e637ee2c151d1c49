"""Asking each backend now and then whether it is there; only requests decide if it is used.

Next: health.py.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from moestro.gateway.config import ProbeConfig
from moestro.gateway.faults import Fault
from moestro.gateway.queue import Line, Member
from moestro.gateway.upstream import Connections

_MOST_BYTES = 4 * 1024**2


class Probes:
    """Probes of all backends, each by a task of its own."""

    def __init__(
        self, connections: Connections, lines: Iterable[Line], config: ProbeConfig
    ) -> None:
        self._connections = connections
        self._members = [member for line in lines for member in line.members]
        self._config = config
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, unless they are never wanted."""
        if self._config.every_s:
            self._tasks = [asyncio.ensure_future(self._repeat(each)) for each in self._members]

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def probe(self, member: Member) -> None:
        """Ask one backend for its models."""
        trouble = None
        try:
            async with asyncio.timeout(self._config.timeout_s):
                incoming = await self._connections.get(member.upstream, "/v1/models")
                with suppress(Fault):
                    await incoming.read_whole(_MOST_BYTES)
                incoming.close()
            # A server need not know this path; it must only be there and well.
            if incoming.status >= 500:
                trouble = f"{member.name} answered a probe with status {incoming.status}"
        except Fault as fault:
            trouble = str(fault)
        except TimeoutError:
            trouble = f"{member.name} did not answer a probe in {self._config.timeout_s:g} s"
        member.health.note_probe(trouble)

    async def _repeat(self, member: Member) -> None:
        while True:
            await self.probe(member)
            await asyncio.sleep(self._config.every_s)
