"""One model to serve, as objects: its settings, its backend, and the application before it.

Next: serving.py, server/app.py, backends/local.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI

from moestro.api.backend import Backend
from moestro.backends.checkpoint import load_checkpoint
from moestro.backends.local import LocalBackend
from moestro.engine.config import EngineConfig
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.ui import pages
from moestro.ui.recent import Recent
from moestro.ui.watched import Watched
from moestro.weights.find import find_checkpoint


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All settings of `moestro serve` for one model: where it is, what clients call it, and how.

    `model` is a run, a checkpoint or a Hugging Face folder; without a name it has its folder's.
    """

    model: Path
    name: str = ""
    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


def build_backend(config: ServeConfig) -> LocalBackend:
    """Open the model's folder; what can be wrong without its weights is found here."""
    name = config.name or config.model.resolve().name
    return LocalBackend(name, load_checkpoint(find_checkpoint(config.model)), config.engine)


def build_server(backend: Backend, config: ServerConfig) -> tuple[FastAPI, Backend]:
    """Put API and pages before a backend, and return it as they see it.

    The application starts it when it starts, and stops it when it stops.
    """
    recent = Recent()
    watched = Watched(backend, recent)
    app = build_app(watched, config, open_paths=pages.OPEN_PATHS)
    pages.mount(app, watched, recent)
    return app, watched
