"""A worker's parts, put together: gateway, records, policy, pages, one application.

Next: worker.py, bookkeeping.py, watches.py, gateway/gateway.py, server/app.py.
"""

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from moestro.api.backend import Backend
from moestro.api.outcome import PostedOutcome
from moestro.cli.bookkeeping import FleetKeys, KeptAnswers, RecordsDoor, SharedBackends
from moestro.cli.floor_watch import Auditor
from moestro.cli.policy_view import PolicyPage
from moestro.cli.watches import Watches, build_gauges, build_watches
from moestro.cli.worker import Plan
from moestro.errors import ConfigError
from moestro.gateway.config import TelemetryConfig
from moestro.gateway.current import CurrentGateway
from moestro.gateway.fleet import Fleet
from moestro.gateway.gateway import Gateway, Surroundings
from moestro.gateway.metrics import GatewayMetrics
from moestro.gateway.translated import Translated
from moestro.policy.audit import AuditPlan
from moestro.policy.policy import Policy
from moestro.policy.store import POLICY_FILE, load_policy
from moestro.records.clients import SharedClients
from moestro.records.conversations import SharedConversations
from moestro.records.outcomes import NewOutcome
from moestro.records.records import Records
from moestro.records.scribe import RemoteWriter
from moestro.records.view import View
from moestro.server import outcomes
from moestro.server.app import Callers, build_app
from moestro.server.keys import Keys
from moestro.ui import pages
from moestro.ui.fleet_pages import mount_fleet
from moestro.ui.recent import Recent
from moestro.ui.watched import Watched

if TYPE_CHECKING:
    from moestro.gateway.telemetry import OpenTelemetry


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a worker serves, what it tells of a new configuration, and what it ends with."""

    app: FastAPI
    backend: Backend
    gateway: CurrentGateway
    records: Records
    live: "LivePolicies"
    telemetry: "OpenTelemetry | None" = None


class LivePolicies:
    """The policy of the latest fleet and what is watched of it; nothing of an earlier one is."""

    def __init__(self, records: Records, registry: CollectorRegistry) -> None:
        self.policy: Policy | None = None
        self.digest = ""
        self.watches = Watches()
        self.auditor: Auditor | None = None
        self.gateway: CurrentGateway | None = None
        self._records = records
        self._gauges = build_gauges(registry)
        self._running: asyncio.Task[None] | None = None

    def load(self, fleet: Fleet) -> Policy | None:
        """Read a fleet's policy and begin to watch it."""
        self.policy = read_policy(fleet)
        self.watches, self.auditor = Watches(), None
        if self.policy is None or fleet.policy is None:
            return None
        self.digest = _digest(fleet.policy.path)
        self.watches = build_watches(
            self._records, self.digest, self.policy.evidence, fleet.policy.shift, self._gauges
        )
        audit = fleet.policy.audit
        if audit.share and audit.judge != "outcomes":
            plan = AuditPlan(share=audit.share)
            self.auditor = Auditor(self._records, self._current, plan, audit.judge)
        return self.policy

    def start(self) -> None:
        """Follow the present watches, and no earlier ones; in the worker's event loop."""
        self.stop()
        self._running = asyncio.get_running_loop().create_task(self.watches.run())
        self._running.add_done_callback(_tell_end)

    def stop(self) -> None:
        """Follow nothing any more."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def _current(self) -> CurrentGateway:
        assert self.gateway is not None
        return self.gateway


def _tell_end(watching: asyncio.Task[None]) -> None:
    if not watching.cancelled() and watching.exception() is not None:
        log.error("the policy is not watched any more: %r", watching.exception())


def build_gateway_app(plan: Plan) -> Parts:
    """Build everything; nothing runs yet but the records."""
    registry = CollectorRegistry()
    counts = GatewayMetrics(registry)
    records = Records(
        plan.records,
        shared=plan.shared,
        worker=plan.number,
        is_keeper=plan.number == 0,
        writer=RemoteWriter(plan.ledger),
    )
    records.start()
    live = LivePolicies(records, registry)
    telemetry = _build_telemetry(plan.telemetry)
    cache = plan.records.cache
    kept = KeptAnswers(records.remembered, cache.max_answer_bytes) if cache.enabled else None

    def build(fleet: Fleet) -> Gateway:
        policy = live.load(fleet)
        around = Surroundings(
            after=() if live.auditor is None else (live.auditor,),
            door=RecordsDoor(records),
            shared=SharedBackends(records.shared),
            conversations=SharedConversations(records.shared, fleet.gateway.sticky_s),
            cache=kept,
            trust=live.watches,
            permits=records,
            metrics=counts,
            tracing=telemetry,
        )
        return Gateway(fleet, policy, around)

    gateway = live.gateway = CurrentGateway(build, plan.fleet)
    recent = Recent()
    watched = Watched(Translated(gateway), recent)
    app = build_app(
        watched,
        plan.server,
        open_paths=pages.OPEN_PATHS,
        relay=gateway,
        registry=registry,
        shown=None if plan.metrics is None else _gather(plan.metrics),
        callers=Callers(
            keys=FleetKeys(Keys(plan.server.keys), records), clients=SharedClients(records.shared)
        ),
    )
    app.include_router(outcomes.routes(_Book(records)))
    pages.mount(app, watched, recent, is_gateway=True)
    mount_fleet(app, gateway, policy=PolicyPage(gateway, live), records=View(records))
    return Parts(
        app=app,
        backend=watched,
        gateway=gateway,
        records=records,
        live=live,
        telemetry=telemetry,
    )


def read_policy(fleet: Fleet) -> Policy | None:
    """Return the policy of a fleet that has one."""
    return None if fleet.policy is None else load_policy(fleet.policy.path)


def check_telemetry(config: TelemetryConfig) -> None:
    """Raise ConfigError if spans are asked for that cannot be sent."""
    config.read_headers()
    if not config.endpoint:
        return
    try:
        import moestro.gateway.telemetry  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise ConfigError(
            f"telemetry needs packages that are not here ({error}): pip install 'moestro[otel]'"
        ) from error


def _build_telemetry(config: TelemetryConfig) -> "OpenTelemetry | None":
    if not config.endpoint:
        return None
    # Only here: whoever sends no spans need not have what it takes.
    from moestro.gateway.telemetry import OpenTelemetry

    return OpenTelemetry(config)


class _Book:
    def __init__(self, records: Records) -> None:
        self._records = records

    async def add(self, outcome: PostedOutcome) -> int:
        names: Sequence[str] = PostedOutcome.__slots__
        values = dict(zip(names, astuple(outcome), strict=True))
        return await self._records.add_outcome(NewOutcome(**values))


def _digest(folder: Path) -> str:
    # Another calibration is another promise, which is tested anew.
    return hashlib.sha256((folder / POLICY_FILE).read_bytes()).hexdigest()[:16]


def _gather(folder: Path) -> CollectorRegistry:
    shown = CollectorRegistry()
    MultiProcessCollector(shown, path=str(folder))
    return shown
