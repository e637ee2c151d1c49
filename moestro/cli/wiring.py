"""One model to serve, as objects: its settings, its backend, and the application before it.

Next: serving.py, server/app.py, backends/local.py.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fastapi import FastAPI

from moestro.api.backend import Backend
from moestro.api.sampling import Sampling
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
    """All settings of `moestro serve` for one model."""

    model: Path
    """A run, a checkpoint or a Hugging Face folder."""
    name: str = ""
    """What clients call it; empty: its folder's name."""
    generation_config: Literal["auto", "off"] = "auto"
    """auto samples as the folder's generation_config.json recommends where a request says nothing;
    off as OpenAI does."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


def build_backend(config: ServeConfig) -> LocalBackend:
    """Open the model's folder; what can be wrong without its weights is found here."""
    name = config.name or config.model.resolve().name
    checkpoint = load_checkpoint(find_checkpoint(config.model))
    if config.generation_config == "off":
        checkpoint = replace(checkpoint, sampling=Sampling())
    return LocalBackend(name, checkpoint, config.engine)


def build_server(backend: Backend, config: ServerConfig) -> tuple[FastAPI, Backend]:
    """Put API and pages before a backend, and return it as they see it.

    The application starts it when it starts, and stops it when it stops.
    """
    recent = Recent()
    watched = Watched(backend, recent)
    app = build_app(watched, config, open_paths=pages.OPEN_PATHS)
    pages.mount(app, watched, recent)
    return app, watched
