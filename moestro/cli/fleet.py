"""`moestro serve fleet.toml`: many models behind one address, in as many processes as they need.

Checks everything that can be checked, then hands over to the supervisor. No torch where all models
are remote. Next: supervisor.py, worker.py, local_model.py.
"""

import hashlib
import logging
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moestro import settings
from moestro.cli import serving, worker
from moestro.cli.keeper import Keeper
from moestro.cli.supervisor import Supervisor
from moestro.engine.config import EngineConfig
from moestro.errors import ConfigError
from moestro.gateway.config import GatewayConfig
from moestro.gateway.fleet import LOCAL_KEY, Fleet, FleetModel, PolicyConfig
from moestro.records.config import RecordsConfig
from moestro.server.config import ServerConfig
from moestro.server.keys import KeysConfig

if TYPE_CHECKING:
    from moestro.cli.wiring import ServeConfig

log = logging.getLogger(__name__)

MOST_WORKERS = 64


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """All settings of `moestro serve` for a fleet; `workers` is how many processes pass requests
    on."""

    models: tuple[FleetModel, ...]
    policy: PolicyConfig | None = None
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    records: RecordsConfig = field(default_factory=RecordsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    workers: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MOST_WORKERS:
            raise ConfigError(f"workers is {self.workers}: it must be 1 to {MOST_WORKERS}")

    def fleet(self) -> Fleet:
        """Return what the gateway knows."""
        return Fleet(models=self.models, policy=self.policy, gateway=self.gateway)


def serve_fleet(read: Callable[[], Mapping[str, Any]]) -> None:
    """Serve until told to stop; `read` gives the configuration's tables, again on SIGHUP."""
    from moestro.cli.serve import announce

    config = load(read)
    serving.check_tls(config.server)
    with serving.listen(config.server) as listener, tempfile.TemporaryDirectory() as folder:
        port = listener.getsockname()[1]
        running = Running(config, read, listener, Path(folder))
        announce(config.server, port, [*config.fleet().names, *running.also_named()])
        status = running.run()
    sys.exit(status)


def load(read: Callable[[], Mapping[str, Any]]) -> FleetConfig:
    """Read and check a fleet, its backends' keys and its policy among it."""
    config = settings.build(FleetConfig, read())
    worker.check(config.fleet())
    return config


class Running:
    """A fleet's processes and what they share."""

    def __init__(
        self,
        config: FleetConfig,
        read: Callable[[], Mapping[str, Any]],
        listener: socket.socket,
        folder: Path,
    ) -> None:
        """`folder` holds what workers share while they run."""
        self._config = config
        self._read = read
        self._listener = listener
        self._folder = folder
        self._key = secrets.token_urlsafe(32)
        settings.set_secret(LOCAL_KEY, self._key)
        self._locals: dict[str, _Local] = {}
        for model in config.models:
            if model.is_local:
                self._locals[model.name] = self._open(model)
        names = [f"worker {number}" for number in range(config.workers)]
        worker.prepare(self._plan(0), config.workers)
        self._supervisor = Supervisor(
            {local.keeper.name: local.keeper for local in self._locals.values()},
            {name: Keeper(name, worker.main, self._arguments(i)) for i, name in enumerate(names)},
            drain_s=config.server.drain_s,
            reload=self._reload,
            on_death=lambda name: worker.bury(self._plan(0), names.index(name)),
        )

    def also_named(self) -> tuple[str, ...]:
        """Return the names that are no model's own."""
        return () if self._config.policy is None else ("auto",)

    def run(self) -> int:
        """Run everything until told to stop; return the exit status."""
        return self._supervisor.run()

    def _reload(self) -> None:
        config = load(self._read)
        for name in ("server", "records", "workers"):
            if getattr(config, name) != getattr(self._config, name):
                log.warning("%s: what changed there holds from the next start on", name)
        wanted = {model.name: model for model in config.models if model.is_local}
        for name, local in list(self._locals.items()):
            if wanted.get(name) != local.model or config.engine != self._config.engine:
                self._supervisor.retire(self._locals.pop(name).keeper.name)
        for name, model in wanted.items():
            if name not in self._locals:
                self._locals[name] = self._open(model, config.engine)
                self._supervisor.adopt(self._locals[name].keeper)
        kept = {"server": self._config.server, "records": self._config.records}
        self._config = replace(config, **kept, workers=self._config.workers)
        for number, keeper in enumerate(self._supervisor.workers.values()):
            keeper.tell(self._plan(number), self._arguments(number))

    def _open(self, model: FleetModel, engine: EngineConfig | None = None) -> "_Local":
        from moestro.cli import local_model, wiring

        assert model.path is not None
        digest = "sha256:" + hashlib.sha256(self._key.encode()).hexdigest()
        server = ServerConfig(
            port=0, drain_s=self._config.server.drain_s, keys=KeysConfig(allowed={"fleet": digest})
        )
        config: ServeConfig = wiring.ServeConfig(
            model=model.path, name=model.name, engine=engine or self._config.engine, server=server
        )
        # Opened once here, so that a mistake is known before anything runs.
        wiring.build_backend(config)
        listener = serving.listen(server)
        keeper = Keeper(f"model {model.name}", local_model.main, (listener, config))
        return _Local(model, f"http://127.0.0.1:{listener.getsockname()[1]}/v1", keeper)

    def _plan(self, number: int) -> worker.Plan:
        urls = {name: local.url for name, local in self._locals.items()}
        return worker.Plan(
            number=number,
            fleet=self._config.fleet().with_local_urls(urls),
            records=self._config.records,
            server=self._config.server,
            folder=self._folder,
        )

    def _arguments(self, number: int) -> tuple[Any, ...]:
        return (self._listener, self._plan(number))


@dataclass(frozen=True)
class _Local:
    model: FleetModel
    url: str
    keeper: Keeper
