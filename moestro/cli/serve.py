"""`moestro serve`: models behind HTTP, with web pages. Next: wiring.py, serving.py."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moestro import settings
from moestro.cli import options
from moestro.errors import ConfigError

if TYPE_CHECKING:
    from moestro.server.config import ServerConfig


def serve(
    model_or_config: Annotated[
        Path,
        typer.Argument(
            help="A run, a checkpoint or a Hugging Face folder, or a TOML file that names some.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str | None,
        typer.Option("--host", help="Address to listen on; 127.0.0.1 if left out."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", help="Port to listen on; 8000 if left out, 0 for any free one."),
    ] = None,
    assignments: Annotated[list[str] | None, options.settings_like("engine.max_batch=8")] = None,
) -> None:
    """Serve models to OpenAI's and Anthropic's clients, with web pages to try them in.

    Example: [bold]moestro serve runs/demo --port 8000[/bold]
    """

    def read() -> dict[str, Any]:
        return load_tables(model_or_config, assignments or [], host=host, port=port)

    tables = read()
    if "models" in tables:
        from moestro.cli.fleet import serve_fleet

        serve_fleet(read)
    else:
        _serve_model(tables)


def load_tables(
    source: Path, assignments: Sequence[str], *, host: str | None, port: int | None
) -> dict[str, Any]:
    """Read a TOML file, or take a model's folder with every setting at its default."""
    is_file = source.suffix == ".toml" and not source.is_dir()
    tables = settings.load(source) if is_file else {"model": str(source)}
    tables = settings.override(tables, assignments)
    flags = {"host": host, "port": port}
    given = {key: value for key, value in flags.items() if value is not None}
    tables = settings.merge(tables, {"server": given})
    if "model" not in tables and "models" not in tables:
        raise ConfigError(
            f"{source}: names no model to serve: give one model, or several under [[models]]"
        )
    if "model" in tables and "models" in tables:
        raise ConfigError("model: give one model, or several under [[models]], but not both")
    return tables


def _serve_model(tables: Mapping[str, Any]) -> None:
    from moestro.cli import serving, wiring
    from moestro.cli.loading import Loading
    from moestro.errors import CheckpointError

    config = settings.build(wiring.ServeConfig, tables)
    serving.check_tls(config.server)
    with serving.listen(config.server) as listener:
        backend = wiring.build_backend(config)
        app, watched = wiring.build_server(backend, config.server)
        announce(config.server, listener.getsockname()[1], [backend.cards()[0].id])
        loading = Loading(backend)
        serving.run(serving.serve(app, watched, config.server, listener, loading.watch))
    if loading.fault is not None:
        raise CheckpointError(str(loading.fault))


def announce(
    server: "ServerConfig", port: int, names: list[str], *, has_users: bool = False
) -> None:
    """Tell a person where to go, and warn if everybody can.

    `has_users` says that keys were made with `moestro keys add`.
    """
    from moestro.cli.serving import is_private

    scheme = "http" if server.tls_cert is None else "https"
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(server.host, server.host)
    root = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    asks_for_key = bool(server.keys.allowed) or has_users
    key = " -H 'authorization: Bearer KEY'" if asks_for_key else ""
    question = f'{{"model": "{names[0]}", "prompt": "def ", "max_tokens": 32}}'
    lines = [
        f"serving {', '.join(names)} at {root}/v1",
        f"open  {root}/",
        f"or try  curl {root}/v1/completions{key} -H 'content-type: application/json'"
        f" -d '{question}'",
    ]
    if not (is_private(server.host) or asks_for_key):
        lines.append(
            f"warning: anybody who can reach {server.host} can use it: set server.keys.allowed,"
            " or listen on 127.0.0.1"
        )
    print("\n".join(lines), file=sys.stderr, flush=True)
