"""A server process for attacks: a backend that recites, pages, hasty limits, and a word on itself.

    python -m tests.flow.besieged_server '{"delay_s": 0.01}'

prints its port once it listens; at SIGUSR1 it prints how many asyncio tasks it has. Next: siege.py.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable

from moestro import logs
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.cli import serving, wiring
from moestro.server.bodies import BodyConfig
from moestro.server.config import ServerConfig
from moestro.server.connections import ConnectionConfig

TEXT = " ".join("abcdefghijklmnopqrst")


def main() -> None:
    """Serve `TEXT`, a word each `delay_s` seconds, to at most `max_requests` at once."""
    given = {"delay_s": 0.01, "max_requests": 1500, "patience_s": 1.0, "drain_s": 20.0}
    given |= json.loads(sys.argv[1])
    logs.apply("info")
    config = ServerConfig(
        port=0,
        drain_s=given["drain_s"],
        bodies=BodyConfig(timeout_s=given["patience_s"]),
        connections=ConnectionConfig(
            head_timeout_s=given["patience_s"], stall_timeout_s=given["patience_s"]
        ),
    )
    script = Script(text=TEXT, delay_s=given["delay_s"])
    scripted = ScriptedBackend(script, max_requests=round(given["max_requests"]))
    app, backend = wiring.build_server(scripted, config)

    async def announce(stop: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: _say(len(asyncio.all_tasks())))
        while backend.stats()[0].state != "ready":
            await asyncio.sleep(0.01)
        _say(listener.getsockname()[1])

    with serving.listen(config) as listener:
        asyncio.run(serving.serve(app, backend, config, listener, announce))


def _say(number: int) -> None:
    print(number, flush=True)


if __name__ == "__main__":
    main()
