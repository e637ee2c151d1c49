"""A gateway's pages on a real server, over a scripted fleet and a scripted backend.

Next: test_fleet_pages.py.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from moestro.backends.scripted import DEFAULT_CARD, ScriptedBackend
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.server.keys import KeysConfig
from moestro.ui.fleet_pages import mount_fleet
from moestro.ui.pages import OPEN_PATHS, mount
from moestro.ui.recent import Recent
from moestro.ui.watched import Watched
from tests.flow.scripted_fleet import ScriptedFleet, ScriptedPolicy, ScriptedRecords
from tests.flow.serving import serving

CARDS = tuple(
    replace(
        DEFAULT_CARD,
        id=name,
        num_experts=0,
        num_moe_layers=0,
        has_budget=False,
        fewest_experts=0,
        most_experts=0,
    )
    for name in ("auto", "small", "large")
)
KEYS = {"ali": "the admin's key", "app": "the app's key"}


@dataclass(frozen=True)
class FleetSite:
    """A server's address, and what stands behind it."""

    address: str
    backend: ScriptedBackend
    policy: ScriptedPolicy | None
    records: ScriptedRecords | None


@contextmanager
def fleet_site(
    policy: ScriptedPolicy | None = None,
    records: ScriptedRecords | None = None,
    *,
    has_keys: bool = False,
) -> Iterator[FleetSite]:
    """Serve a gateway's pages."""
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    allowed = {name: f"sha256:{digest}" for name, digest in digests.items()} if has_keys else {}
    backend = ScriptedBackend("Two of them.", cards=CARDS)
    recent = Recent()
    watched = Watched(backend, recent)
    config = ServerConfig(keys=KeysConfig(allowed=allowed))
    app = build_app(watched, config, open_paths=OPEN_PATHS)
    mount(app, watched, recent, is_gateway=True)
    mount_fleet(app, ScriptedFleet(), policy=policy, records=records)
    with serving(app) as address:
        yield FleetSite(f"{address}/", backend, policy, records)
