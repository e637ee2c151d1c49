"""The process that writes a gateway's ledger: beside those that answer, and after them.

No torch, no HTTP. Next: records/scribe.py; supervisor.py, which keeps it.
"""

import os
import signal
import socket
from multiprocessing.connection import Connection
from typing import Any

from moestro import logs
from moestro.records.config import RecordsConfig
from moestro.records.database import Database
from moestro.records.scribe import serve_workers
from moestro.records.writer import DatabaseWriter

# Requests go first; but under full load it must get as much as their records take.
_NICENESS = 10


def main(pipe: Connection, listener: socket.socket, config: RecordsConfig) -> None:
    """Write until told to stop, or the supervisor is gone, and no worker has anything to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    told, far_end = socket.socketpair()
    far_end.setblocking(False)
    signal.signal(signal.SIGTERM, _hear)
    signal.set_wakeup_fd(far_end.fileno())
    logs.apply()
    os.nice(_NICENESS)
    serve_workers(listener, DatabaseWriter(Database(config)), (pipe, told))


def _hear(number: int, frame: Any) -> None:  # noqa: ANN401 (what signal handlers are given)
    """Leave it to the file descriptor that wakes."""
