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
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from moestro import settings
from moestro.api.cards import AUTO
from moestro.cli import gateway_app, scribe, serving, worker
from moestro.cli.keeper import Keeper
from moestro.cli.supervisor import Supervisor
from moestro.engine.config import EngineConfig
from moestro.errors import ConfigError
from moestro.gateway.config import GatewayConfig, TelemetryConfig
from moestro.gateway.fleet import Fleet, FleetModel, LocalServer, PolicyConfig
from moestro.records.config import RecordsConfig
from moestro.records.counts import LedgerCounts, bury_ledger
from moestro.records.database import Database
from moestro.records.keys import list_keys
from moestro.records.scribe import listen_for_workers
from moestro.records.shared import SharedFile, create_shared
from moestro.server.config import ServerConfig
from moestro.server.keys import KeysConfig

log = logging.getLogger(__name__)

MOST_WORKERS = 64
# The variable that holds the key by which workers ask local models; made anew each time.
_LOCAL_KEY = "MOESTRO_LOCAL_KEY"
# No model's process has such a name: theirs begin with another word.
_LEDGER = "the ledger's process"


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """All settings of `moestro serve` for a fleet."""

    models: tuple[FleetModel, ...]
    policy: PolicyConfig | None = None
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    records: RecordsConfig = field(default_factory=RecordsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    workers: int = 1
    """Processes that pass requests on. Limits: 1 to 64."""
    generation_config: Literal["auto", "off"] = "auto"
    """As for one model, for the models on this machine."""

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
    # Once for all workers: one line, where each would say it again and again.
    has_users = _has_users(config.records)
    with ExitStack() as stack:
        listener = stack.enter_context(serving.listen(config.server))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moestro-")))
        shared = create_shared(config.workers)
        stack.callback(shared.unlink)
        metrics = folder if config.workers > 1 else None
        if metrics is not None:
            settings.gather_metrics(metrics)
        ledger = stack.enter_context(listen_for_workers(folder / "ledger"))
        sharing = Sharing(shared=shared, ledger=ledger, metrics=metrics)
        running = Running(config, read, listener, sharing)
        also = () if config.policy is None else (AUTO,)
        names = [*config.fleet().names, *also]
        announce(config.server, listener.getsockname()[1], names, has_users=has_users)
        status = running.run()
    if status:
        sys.exit(status)


def _has_users(config: RecordsConfig) -> bool:
    """Raise StorageError where records cannot be kept; leave the schema up to date."""
    with closing(Database(config)) as database:
        database.open()
        with database.read() as connection:
            return bool(list_keys(connection))


def load(read: Callable[[], Mapping[str, Any]]) -> FleetConfig:
    """Read and check a fleet, its backends' keys and its policy among it."""
    config = settings.build(FleetConfig, read())
    fleet = config.fleet()
    fleet.check_keys()
    gateway_app.check_telemetry(config.telemetry)
    policy = gateway_app.read_policy(fleet)
    if policy is not None:
        fleet.check_policy_models(policy.models)
    return config


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What a fleet's processes have in common while they run."""

    shared: Path
    ledger: socket.socket
    metrics: Path | None


class Running:
    """A fleet's processes."""

    def __init__(
        self,
        config: FleetConfig,
        read: Callable[[], Mapping[str, Any]],
        listener: socket.socket,
        sharing: Sharing,
    ) -> None:
        self._config = config
        self._read = read
        self._listener = listener
        self._sharing = sharing
        self._key = secrets.token_urlsafe(32)
        settings.set_secret(_LOCAL_KEY, self._key)
        models = [model for model in config.models if model.is_local]
        self._locals = {model.name: self._open(model, config) for model in models}
        names = self._worker_names = [f"worker {number}" for number in range(config.workers)]
        self._supervisor = Supervisor(
            {
                _LEDGER: Keeper(_LEDGER, scribe.main, (sharing.ledger, config.records)),
                **{local.keeper.name: local.keeper for local in self._locals.values()},
            },
            {name: Keeper(name, worker.main, self._arguments(i)) for i, name in enumerate(names)},
            drain_s=config.server.drain_s,
            reload=self._reload,
            on_death=self._note_death,
        )

    def run(self) -> int:
        """Run everything until told to stop; return the exit status."""
        return self._supervisor.run()

    def _reload(self) -> None:
        new, old = load(self._read), self._config
        fixed = ("server", "records", "telemetry", "workers")
        for name in fixed:
            if getattr(new, name) != getattr(old, name):
                log.warning("%s: what changed there holds from the next start on", name)
        new = replace(new, **{name: getattr(old, name) for name in fixed})
        wanted = {model.name: model for model in new.models if model.is_local}
        is_other = any(
            getattr(new, name) != getattr(old, name) for name in ("engine", "generation_config")
        )
        stale = [
            name
            for name, local in self._locals.items()
            if is_other or name not in wanted or wanted[name].path != local.model.path
        ]
        opened = {
            name: self._open(model, new)
            for name, model in wanted.items()
            if name in stale or name not in self._locals
        }
        # From here on nothing can go wrong.
        for name in stale:
            self._supervisor.retire(self._locals.pop(name).keeper.name)
        for local in opened.values():
            self._supervisor.adopt(local.keeper)
        self._locals |= opened
        self._config = new
        for number, keeper in enumerate(self._supervisor.workers.values()):
            arguments = self._arguments(number)
            keeper.tell(arguments[1].fleet, arguments)

    def _open(self, model: FleetModel, config: FleetConfig) -> "_Local":
        # Only where there is a model: it brings what a host that has none need not install.
        from moestro.cli import local_model, wiring

        assert model.path is not None
        digest = "sha256:" + hashlib.sha256(self._key.encode()).hexdigest()
        keys = KeysConfig(allowed={"gateway": digest})
        server = ServerConfig(port=0, drain_s=config.server.drain_s, keys=keys)
        serve = wiring.ServeConfig(
            model=model.path,
            name=model.name,
            generation_config=config.generation_config,
            engine=config.engine,
            server=server,
        )
        # Opened here as well, so that a mistake is known before anything runs.
        (card,) = wiring.build_backend(serve).cards()
        listener = serving.listen(server)
        keeper = Keeper(f"model {model.name}", local_model.main, (listener, serve))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        return _Local(model, LocalServer(url=url, card=card), keeper)

    def _arguments(self, number: int) -> tuple[socket.socket, worker.Plan]:
        servers = {name: local.server for name, local in self._locals.items()}
        plan = worker.Plan(
            number=number,
            fleet=self._config.fleet().with_local(servers, _LOCAL_KEY),
            records=self._config.records,
            server=self._config.server,
            shared=self._sharing.shared,
            ledger=Path(self._sharing.ledger.getsockname()),
            metrics=self._sharing.metrics,
            telemetry=self._config.telemetry,
        )
        return (self._listener, plan)

    def _note_death(self, name: str) -> None:
        if name == _LEDGER:
            LedgerCounts(SharedFile(self._sharing.shared, 0)).note_restart()
        elif name in self._worker_names:
            self._bury(self._worker_names.index(name))

    def _bury(self, number: int) -> None:
        shared = SharedFile(self._sharing.shared, number)
        shared.clear_worker(number)
        num_lost = bury_ledger(shared)
        if num_lost:
            log.error("up to %d records of worker %d were lost with it", num_lost, number)


@dataclass(frozen=True)
class _Local:
    model: FleetModel
    server: LocalServer
    keeper: Keeper
