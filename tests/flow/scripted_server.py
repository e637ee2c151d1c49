"""A server process with a backend that recites, for what needs signals but no model.

    python -m tests.flow.scripted_server DELAY_S DRAIN_S

prints its port once it listens. Next: test_serving.py.
"""

import asyncio
import sys
from collections.abc import Callable

from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.cli import serving
from moestro.server.app import build_app
from moestro.server.config import ServerConfig

TEXT = " ".join("abcdefghijklmnopqrst")


def main() -> None:
    """Serve `TEXT`, a word each DELAY_S seconds."""
    delay_s, drain_s = map(float, sys.argv[1:])
    config = ServerConfig(port=0, drain_s=drain_s)
    backend = ScriptedBackend(Script(text=TEXT, delay_s=delay_s))
    app = build_app(backend, config)

    async def announce(stop: Callable[[], None]) -> None:
        while backend.stats()[0].state != "ready":
            await asyncio.sleep(0.01)
        print(listener.getsockname()[1], flush=True)

    with serving.listen(config) as listener:
        asyncio.run(serving.serve(app, backend, config, listener, announce))


if __name__ == "__main__":
    main()
