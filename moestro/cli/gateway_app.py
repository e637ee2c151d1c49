"""A worker's parts, put together: gateway, records, policy, pages, one application.

Next: worker.py, gateway/gateway.py, server/app.py.
"""

from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from moestro.api.backend import Backend
from moestro.cli.worker import Plan
from moestro.errors import ConfigError
from moestro.gateway.choosing import Policy
from moestro.gateway.current import CurrentGateway
from moestro.gateway.fleet import Fleet
from moestro.gateway.gateway import Gateway, Surroundings
from moestro.gateway.metrics import GatewayMetrics
from moestro.gateway.translated import Translated
from moestro.server.app import build_app
from moestro.ui import pages
from moestro.ui.recent import Recent
from moestro.ui.watched import Watched


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a worker serves, and what it tells of a new configuration."""

    app: FastAPI
    backend: Backend
    gateway: CurrentGateway


def build_gateway_app(plan: Plan) -> Parts:
    """Build everything; nothing runs yet."""
    registry = CollectorRegistry()
    counts = GatewayMetrics(registry)

    def build(fleet: Fleet) -> Gateway:
        return Gateway(fleet, read_policy(fleet), Surroundings(metrics=counts))

    gateway = CurrentGateway(build, plan.fleet)
    recent = Recent()
    watched = Watched(Translated(gateway), recent)
    app = build_app(
        watched,
        plan.server,
        open_paths=pages.OPEN_PATHS,
        relay=gateway,
        registry=registry,
        shown=None if plan.metrics is None else _gather(plan.metrics),
    )
    pages.mount(app, watched, recent)
    return Parts(app=app, backend=watched, gateway=gateway)


def read_policy(fleet: Fleet) -> Policy | None:
    """Return the policy of a fleet that has one."""
    if fleet.policy is None:
        return None
    raise ConfigError("policy.path: not there yet")


def _gather(folder: Path) -> CollectorRegistry:
    shown = CollectorRegistry()
    MultiProcessCollector(shown, path=str(folder))
    return shown
