"""Configuration to objects: which models are served, by what backends, behind which application.

Next: serving.py, server/app.py, backends/local.py.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI

from moestro import settings
from moestro.api.backend import Backend
from moestro.backends.checkpoint import load_checkpoint
from moestro.backends.local import LocalBackend
from moestro.backends.models import Models
from moestro.engine.config import EngineConfig
from moestro.errors import ConfigError
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.ui import pages
from moestro.ui.recent import Recent
from moestro.ui.watched import Watched
from moestro.weights.find import find_checkpoint


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A run, a checkpoint or a Hugging Face folder, and the name that clients ask for."""

    path: Path
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All settings of `moestro serve`: one `model` or several `models`, engine and server."""

    model: Path | None = None
    models: tuple[ServedModel, ...] = ()
    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        if (self.model is None) == (not self.models):
            raise ConfigError("model: give one model, or several under [[models]], but not both")


def load_serve_config(
    source: Path, assignments: Sequence[str], *, host: str | None, port: int | None
) -> ServeConfig:
    """Read a TOML file, or take a model's folder with every setting at its default."""
    is_file = source.suffix == ".toml" and not source.is_dir()
    tables = settings.load(source) if is_file else {"model": str(source)}
    tables = settings.override(tables, assignments)
    flags = {"host": host, "port": port}
    given = {key: value for key, value in flags.items() if value is not None}
    return settings.build(ServeConfig, settings.merge(tables, {"server": given}))


def build_backends(config: ServeConfig) -> list[LocalBackend]:
    """Open every model's folder; what can be wrong without its weights is found here."""
    served = config.models or (ServedModel(path=config.model or Path()),)
    return [
        LocalBackend(
            model.name or model.path.resolve().name,
            load_checkpoint(find_checkpoint(model.path)),
            config.engine,
        )
        for model in served
    ]


def build_server(backends: Sequence[Backend], config: ServerConfig) -> tuple[FastAPI, Backend]:
    """Put API and pages before the backends, and return them as one.

    The application starts it when it starts, and stops it when it stops.
    """
    recent = Recent()
    watched = Watched(backends[0] if len(backends) == 1 else Models(backends), recent)
    app = build_app(watched, config, open_paths=pages.OPEN_PATHS)
    pages.mount(app, watched, recent)
    return app, watched


def check_tls(config: ServerConfig) -> None:
    """Raise ConfigError if certificate and key cannot be used."""
    if config.tls_cert is None or config.tls_key is None:
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except OSError as error:
        reason = error.strerror or "not a certificate and its key in PEM form"
        raise ConfigError(
            f"server.tls_cert {config.tls_cert} and server.tls_key {config.tls_key}: {reason}"
        ) from error
