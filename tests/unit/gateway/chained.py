"""A real server of ours, and a gateway before it, as a client meets them: both on loopback.

Next: test_count_tokens.py, test_embeddings.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from moestro.api.record import Record
from moestro.backends.scripted import DEFAULT_CARD, ScriptedBackend
from moestro.gateway.fleet import BackendConfig, Fleet, FleetModel, LocalServer, Price
from moestro.gateway.gateway import Gateway, Surroundings
from moestro.gateway.translated import Translated
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from tests.flow.serving import serving
from tests.unit.gateway.upstreams import QUICK

CARD = replace(DEFAULT_CARD, id="m")


@dataclass(frozen=True)
class Chain:
    """The gateway's address, that of the server behind it, and what the gateway wrote down."""

    root: str
    upstream: str
    backend: ScriptedBackend
    records: list[Record]


@contextmanager
def chain(*, is_local: bool) -> Iterator[Chain]:
    """Serve a scripted model "m" behind a gateway: as its own child, or as somebody's server."""
    backend, records = ScriptedBackend(cards=(CARD,)), list[Record]()
    with serving(build_app(backend)) as upstream:
        url, price = f"{upstream}/v1", Price(input_usd_per_mtok=1)
        if is_local:
            model = FleetModel(name="m", path=Path("m"), price=price)
            servers = {"m": LocalServer(url=url, card=CARD)}
        else:
            model = FleetModel(name="m", backends=(BackendConfig(url=url),), price=price)
            servers = {}
        fleet = Fleet(models=(model,), gateway=QUICK).with_local(servers)
        gateway = Gateway(fleet, None, Surroundings(listeners=(records.append,)))
        app = build_app(Translated(gateway), ServerConfig(drain_s=0), relay=gateway)
        with serving(app) as root:
            yield Chain(root, upstream, backend, records)
