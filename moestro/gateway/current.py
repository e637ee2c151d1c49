"""The gateway of the present configuration: a new one takes over, and no stream is dropped.

The old one goes on with what it began, then closes its connections. Next: gateway.py.
"""

import asyncio
from collections.abc import Callable

from moestro.api.fleet_view import FleetView
from moestro.api.relay import Call, Reply
from moestro.gateway.choosing import Chooser
from moestro.gateway.fleet import Fleet
from moestro.gateway.gateway import Gateway

_LOOK_S = 0.5


class CurrentGateway:
    """Relays calls to the gateway that `build` made of the latest fleet."""

    def __init__(self, build: Callable[[Fleet], Gateway], fleet: Fleet) -> None:
        self._build = build
        self._gateway = build(fleet)
        self._leaving: dict[asyncio.Task[None], Gateway] = {}

    @property
    def fleet(self) -> Fleet:
        """The latest fleet."""
        return self._gateway.fleet

    @property
    def chooser(self) -> Chooser:
        """Who decides."""
        return self._gateway.chooser

    def view(self) -> FleetView:
        """Return how the fleet is now."""
        return self._gateway.view()

    async def start(self) -> None:
        """Open connections and begin to probe."""
        await self._gateway.start()

    async def stop(self) -> None:
        """Close all connections; what is under way breaks off."""
        leaving = dict(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        # A task that was ended before it began has closed nothing.
        for gateway in (*leaving.values(), self._gateway):
            await gateway.stop()

    async def relay(self, call: Call) -> Reply | None:
        """Answer a call; None where it must be translated first."""
        return await self._gateway.relay(call)

    async def renew(self, fleet: Fleet) -> None:
        """Answer from now on with another fleet; the old one stays if this one has a mistake."""
        gateway = self._build(fleet)
        gateway.take_over(self._gateway)
        await gateway.start()
        old, self._gateway = self._gateway, gateway
        task = asyncio.create_task(_retire(old))
        self._leaving[task] = old
        task.add_done_callback(self._leaving.pop)


async def _retire(gateway: Gateway) -> None:
    while gateway.num_open:
        await asyncio.sleep(_LOOK_S)
    await gateway.stop()
