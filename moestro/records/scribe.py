"""The process that writes what all of a gateway's workers record, and their end of the line to it.

One batch at a time, each answered once it is in the database. A worker that gets no answer sends
the batch again, so that what dies here loses nothing. Knows no requests. Next: cli/scribe.py.
"""

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any

import msgspec

from moestro.errors import StorageError
from moestro.records.writer import BadRowError, LedgerBatch, Writer

# Longer than a database may keep a batch waiting, with those of other workers before it.
_PATIENCE_S = 60.0
_WAITING_WORKERS = 128

_encode = msgspec.msgpack.Encoder().encode
_read_batch = msgspec.msgpack.Decoder(LedgerBatch).decode


class _Answer(msgspec.Struct, omit_defaults=True):
    trouble: str = ""
    is_bad_row: bool = False


_read_answer = msgspec.msgpack.Decoder(_Answer).decode


class RemoteWriter:
    """Asks the process that writes; for one thread."""

    def __init__(self, address: Path) -> None:
        """Connect, so that the process stays as long as this one needs it."""
        self._address = address
        self._line: Connection | None = None
        with self._errors():
            self._connect()

    def write(self, batch: LedgerBatch) -> None:
        """Have a batch written, unless it is there already."""
        data = _encode(batch)
        with self._errors():
            try:
                answer = self._ask(data)
            except (ConnectionError, EOFError):
                # It died, which may be long ago: whoever took its place is asked the same.
                self.close()
                answer = self._ask(data)
        if answer.is_bad_row:
            raise BadRowError(answer.trouble)
        if answer.trouble:
            raise StorageError(answer.trouble)

    def close(self) -> None:
        """Need it no more."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _ask(self, data: bytes) -> _Answer:
        line = self._connect()
        line.send_bytes(data)
        if not line.poll(_PATIENCE_S):
            raise TimeoutError
        answer: _Answer = _read_answer(line.recv_bytes())
        return answer

    def _connect(self) -> Connection:
        if self._line is None:
            self._line = Client(str(self._address), family="AF_UNIX")
        return self._line

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError) as error:
            # What it may still answer would be taken for the answer to another batch.
            self.close()
            raise StorageError(f"the process that writes records: {error!r}") from error


def listen_for_workers(address: Path) -> socket.socket:
    """Take an address in a folder of one's own for the process that writes.

    Whoever holds it lets workers wait in line while that process is started again.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(os.fspath(address))
        listener.listen(_WAITING_WORKERS)
    except OSError as error:
        listener.close()
        raise StorageError(f"{address}: {error}: set TMPDIR to a folder with a short name") from (
            error
        )
    return listener


def serve_workers(listener: socket.socket, writer: Writer, ends: Collection[Any]) -> None:
    """Write what comes, until one of `ends` can be read and no worker is connected any more."""
    lines: list[Connection] = []
    is_ending = False
    while True:
        ready = wait([listener, *lines, *(() if is_ending else ends)], _patience(is_ending, lines))
        if is_ending and not lines and not ready:
            return
        is_ending = is_ending or any(end in ready for end in ends)
        gone = [line for line in lines if line in ready and not _serve_one(line, writer)]
        lines = [line for line in lines if line not in gone]
        if listener in ready:
            lines.append(Connection(listener.accept()[0].detach()))


def _patience(is_ending: bool, lines: list[Connection]) -> float | None:
    # Whoever waits in line is let in before the end.
    return 0.0 if is_ending and not lines else None


def _serve_one(line: Connection, writer: Writer) -> bool:
    """Write one batch and answer; False where the worker is gone."""
    try:
        batch = _read_batch(line.recv_bytes())
    except (OSError, EOFError):
        line.close()
        return False
    answer = _Answer()
    try:
        writer.write(batch)
    except BadRowError as error:
        answer = _Answer(str(error), is_bad_row=True)
    except StorageError as error:
        answer = _Answer(str(error))
    # Whoever asked may be gone; the next reading tells.
    with suppress(OSError):
        line.send_bytes(_encode(answer))
    return True
