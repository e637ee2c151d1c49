"""Asking each backend now and then whether it is there; only requests decide if it is used.

Next: health.py.
"""

import asyncio
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import replace

from moestro.gateway.config import ProbeConfig
from moestro.gateway.faults import Fault
from moestro.gateway.queue import Line, Member
from moestro.gateway.upstream import Connections

_MOST_BYTES = 4 * 1024**2
# A local model that loads will be there, and others wait for it.
_EXPECTED_S = 1.0


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
        """Begin; where probes are not wanted, ask local models until they have loaded."""
        for member in self._members:
            if self._config.every_s or member.upstream.is_local:
                self._tasks.append(asyncio.ensure_future(self._repeat(member)))
            else:
                member.health.note_probe(None)

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def probe(self, member: Member) -> None:
        """Ask one backend for its models; one of ours, which has them at once, if it is ready."""
        trouble = None
        upstream, path = member.upstream, "/v1/models"
        if upstream.is_local:
            upstream, path = replace(upstream, folder=b""), "/ready"
        try:
            async with asyncio.timeout(self._config.timeout_s):
                incoming = await self._connections.get(upstream, path)
                with closing(incoming), suppress(Fault):
                    await incoming.read_whole(_MOST_BYTES)
            # A server need not know this path; it must only be there and well.
            if upstream.is_local and incoming.status == 503:
                trouble = f"{member.name} is not ready"
            elif incoming.status >= 500:
                trouble = f"{member.name} answered a probe with status {incoming.status}"
        except Fault as fault:
            trouble = str(fault)
        except TimeoutError:
            trouble = f"{member.name} did not answer a probe in {self._config.timeout_s:g} s"
        member.health.note_probe(trouble)

    async def _repeat(self, member: Member) -> None:
        every_s, health = self._config.every_s, member.health
        while True:
            await self.probe(member)
            is_expected = member.upstream.is_local and health.state != "ready"
            if not every_s and not is_expected:
                return
            await asyncio.sleep(
                min(every_s or _EXPECTED_S, _EXPECTED_S) if is_expected else every_s
            )
