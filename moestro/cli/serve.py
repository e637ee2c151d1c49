"""`moestro serve`: models behind HTTP, with web pages. Next: wiring.py, serving.py."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moestro.cli import options

if TYPE_CHECKING:
    from moestro.cli.wiring import ServeConfig


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
    assignments: options.Set = None,
) -> None:
    """Serve models to OpenAI's and Anthropic's clients, with web pages to try them in.

    Example: [bold]moestro serve runs/demo --port 8000[/bold]
    """
    import asyncio

    from moestro.cli import serving, wiring
    from moestro.cli.loading import Loading
    from moestro.errors import CheckpointError

    config = wiring.load_serve_config(model_or_config, assignments or [], host=host, port=port)
    wiring.check_tls(config.server)
    with serving.listen(config.server) as listener:
        backends = wiring.build_backends(config)
        app, backend = wiring.build_server(backends, config.server)
        _announce(config, listener.getsockname()[1], [each.cards()[0].id for each in backends])
        loading = Loading(backends)
        asyncio.run(serving.serve(app, backend, config.server, listener, loading.watch))
    if loading.fault is not None:
        raise CheckpointError(str(loading.fault))


def _announce(config: "ServeConfig", port: int, names: list[str]) -> None:
    from moestro.cli.serving import is_private

    server = config.server
    scheme = "http" if server.tls_cert is None else "https"
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(server.host, server.host)
    root = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    key = " -H 'authorization: Bearer KEY'" if server.keys.allowed else ""
    question = f'{{"model": "{names[0]}", "prompt": "def ", "max_tokens": 32}}'
    lines = [
        f"serving {', '.join(names)} at {root}/v1",
        f"open  {root}/",
        f"or try  curl {root}/v1/completions{key} -H 'content-type: application/json'"
        f" -d '{question}'",
    ]
    if not (is_private(server.host) or server.keys.allowed):
        lines.append(
            f"warning: anybody who can reach {server.host} can use it: set server.keys.allowed,"
            " or listen on 127.0.0.1"
        )
    print("\n".join(lines), file=sys.stderr, flush=True)
