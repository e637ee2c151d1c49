"""One of a gateway's processes: the application behind the shared port.

No torch, and no model. Next: wiring of a single model in wiring.py; gateway/gateway.py.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from moestro import logs
from moestro.cli import serving
from moestro.cli.keeper import USER_MISTAKE
from moestro.cli.tether import Tether
from moestro.errors import MoestroError, StorageError
from moestro.gateway.config import TelemetryConfig
from moestro.gateway.fleet import Fleet
from moestro.records.config import RecordsConfig
from moestro.records.turns import Turns
from moestro.server.config import ServerConfig

if TYPE_CHECKING:
    from moestro.cli.gateway_app import Parts

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a worker is started with; `shared` is the file that workers have in common, `ledger` the
    address of the process that writes what they record.

    `metrics` is where each leaves what it counts, None where there is one worker.
    """

    number: int
    fleet: Fleet
    records: RecordsConfig
    server: ServerConfig
    shared: Path
    ledger: Path
    metrics: Path | None
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)


def main(pipe: Connection, listener: socket.socket, plan: Plan) -> None:
    """Serve until told to stop, or until the supervisor is gone; messages are new fleets."""
    # They reach every process of the group, but what they mean is the supervisor's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logs.apply()
    try:
        serving.run(_serve(pipe, listener, plan))
    except StorageError as error:
        # It was there when the server started, and may come back.
        log.error("%s", error)
        sys.exit(1)
    except MoestroError as error:
        print(f"moestro: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)


async def _serve(pipe: Connection, listener: socket.socket, plan: Plan) -> None:
    from moestro.cli.gateway_app import build_gateway_app

    parts = build_gateway_app(plan)
    renewals: set[asyncio.Task[None]] = set()

    def renew(fleet: Fleet) -> None:
        task = asyncio.create_task(_renew(parts, fleet))
        renewals.add(task)
        task.add_done_callback(renewals.discard)

    async def beside(stop: Callable[[], None]) -> None:
        parts.live.start()
        await Tether(pipe).watch(stop, renew)

    signals = (signal.SIGTERM,)
    try:
        await serving.serve(
            parts.app,
            parts.backend,
            plan.server,
            listener,
            beside,
            signals=signals,
            shares=Turns(parts.records.shared),
        )
    finally:
        parts.live.stop()
        await asyncio.to_thread(parts.records.stop)
        if parts.telemetry is not None:
            await asyncio.to_thread(parts.telemetry.stop)


async def _renew(parts: "Parts", fleet: Fleet) -> None:
    try:
        await parts.gateway.renew(fleet)
        parts.live.start()
    except MoestroError as error:
        log.error("this worker stays as it was: %s", error)
