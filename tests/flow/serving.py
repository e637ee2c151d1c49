"""A real server in a thread of this process, on a free port of the loopback.

Knows no routes and no backend. Next: test_openai_client.py.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from moestro.server.connections import ConnectionConfig, build_protocol

TIMEOUT_S = 20.0


@contextmanager
def serving(app: FastAPI, connections: ConnectionConfig | None = None) -> Iterator[str]:
    """Serve an application and give its address; it is gone when the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=build_protocol(connections or ConnectionConfig()),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(TIMEOUT_S)
        listener.close()


def wait_until(is_true: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Wait for what another thread does; fail if it never comes true."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
