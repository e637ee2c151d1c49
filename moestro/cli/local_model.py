"""The process of one local model behind a gateway: a server of its own on loopback.

Next: serving.py, wiring.py; supervisor.py keeps it.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from moestro import logs
from moestro.cli import serving, wiring
from moestro.cli.keeper import USER_MISTAKE
from moestro.cli.loading import Loading
from moestro.cli.tether import Tether
from moestro.errors import MoestroError


def main(pipe: Connection, listener: socket.socket, config: wiring.ServeConfig) -> None:
    """Serve the model until told to stop, or until the supervisor is gone."""
    # They reach every process of the group, but what they mean is the supervisor's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The workers' log tells of each request already.
    logs.apply("warning", is_beside_progress=True)
    try:
        backend = wiring.build_backend(config)
        app, watched = wiring.build_server(backend, config.server)
        loading = Loading(backend)

        async def beside(stop: Callable[[], None]) -> None:
            await asyncio.gather(loading.watch(stop), Tether(pipe).watch(stop))

        signals = (signal.SIGTERM,)
        serve = serving.serve(app, watched, config.server, listener, beside, signals=signals)
        serving.run(serve)
        if loading.fault is not None:
            raise loading.fault
    except MoestroError as error:
        print(f"moestro: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
