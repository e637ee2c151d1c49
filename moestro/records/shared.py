"""State that a host's worker processes share without a database: a file in all their memories.

Rows of numbers by name, and one lock around whatever reads and writes several of them. What a
worker counts stands in a column of its own, so that the supervisor can clear a dead one's. Knows
no keys and no limits. Next: busy.py, meters.py, counts.py, latest.py.
"""

import fcntl
import hashlib
import mmap
import os
import secrets
import tempfile
import threading
import time
from pathlib import Path

from moestro.errors import CapacityError, ConfigError, StorageError

_MAGIC = 7.0
# Cells of the header; of rows there is one count for each kind.
_MAGIC_AT, _WORKERS_AT, _ROWS_AT, _, _, _, _CONVERSATIONS_AT, _BEGAN_AT = range(8)
_HEADER = 8
_DIGEST_BYTES = 16
_NUMBER_BYTES = 8
_DIGEST_CELLS = _DIGEST_BYTES // _NUMBER_BYTES
_MOST_WORKERS = 64
_MEMORY_FOLDER = Path("/dev/shm")

BACKENDS, KEYS, COUNTS, LATEST = range(4)
_KINDS = (BACKENDS, KEYS, COUNTS, LATEST)
# Per row: numbers that all workers write, and numbers of each worker.
_COMMON = (8, 10, 1, 1)
_OWN = (1, 3, 6)
# Of the latest values: so many of all workers together, and of each at least so many.
_MOST_LATEST, _FEWEST_LATEST = 256, 32
# A conversation's digest, until when it is kept, and the name of its model.
CONVERSATION_CELLS = 8


def create_shared(
    num_workers: int,
    *,
    num_backends: int = 256,
    num_keys: int = 4096,
    num_counts: int = 1024,
    num_latest: int = 1024,
    num_conversations: int = 32_768,
) -> Path:
    """Make an empty file for so many workers and return its path; whoever made it deletes it."""
    if not 1 <= num_workers <= _MOST_WORKERS:
        raise ConfigError(f"{num_workers} workers: they must be 1 to {_MOST_WORKERS}")
    in_memory = _MEMORY_FOLDER.is_dir() and os.access(_MEMORY_FOLDER, os.W_OK)
    folder = _MEMORY_FOLDER if in_memory else Path(tempfile.gettempdir())
    path = folder / f"moestro-{secrets.token_hex(8)}"
    counts = (num_backends, num_keys, num_counts, num_latest)
    size = _HEADER + sum(n * _row_cells(kind, num_workers) for kind, n in enumerate(counts))
    size += num_conversations * CONVERSATION_CELLS
    try:
        with open(path, "xb", opener=_open_private) as file:
            # Now, not when a worker first writes there: then a full disk would kill it.
            os.posix_fallocate(file.fileno(), 0, size * _NUMBER_BYTES)
            header = memoryview(bytearray(_HEADER * _NUMBER_BYTES)).cast("d")
            values = (_MAGIC, num_workers, *counts, num_conversations, time.time())
            for cell, value in enumerate(values):
                header[cell] = value
            file.write(header)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(f"{path}: {error.strerror}: free space or grant access") from error
    return path


class SharedFile:
    """One worker's view of the file."""

    def __init__(self, path: Path, worker: int) -> None:
        try:
            handle = os.open(path, os.O_RDWR)
            try:
                self._memory = mmap.mmap(handle, 0)
            finally:
                os.close(handle)
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: no shared state of workers: {error}") from error
        self.cells = memoryview(self._memory).cast("d")
        if len(self.cells) < _HEADER or self.cells[_MAGIC_AT] != _MAGIC:
            raise StorageError(f"{path}: is no shared state of workers: start the server again")
        self.num_workers = int(self.cells[_WORKERS_AT])
        if not 0 <= worker < self.num_workers:
            raise ConfigError(f"worker {worker}: this file is for {self.num_workers}, from 0 on")
        self.worker = worker
        self.lock = FileLock(path)
        start, tables = _HEADER, []
        for kind in _KINDS:
            count = int(self.cells[_ROWS_AT + kind])
            tables.append(Rows(self, kind, start, count))
            start += count * _row_cells(kind, self.num_workers)
        self.backends, self.keys, self.counts, self.latest = tables
        self.num_conversations = int(self.cells[_CONVERSATIONS_AT])
        self._conversations = start

    @property
    def began_at(self) -> float:
        """When the file was made, in seconds since 1970: the server's start."""
        return self.cells[_BEGAN_AT]

    def clear_worker(self, worker: int) -> None:
        """Forget what a dead worker had under way; for the supervisor, before it starts another.

        What it has counted stays.
        """
        with self.lock:
            for rows in (self.backends, self.keys):
                rows.clear_worker(worker)

    def conversations(self) -> memoryview:
        """Return the bytes in which conversations stand."""
        start = self._conversations * _NUMBER_BYTES
        size = self.num_conversations * CONVERSATION_CELLS * _NUMBER_BYTES
        return memoryview(self._memory)[start : start + size]

    def digests(self, start: int, count: int, stride: int) -> list[bytes]:
        """Return the names' digests of rows that begin at a cell, `stride` cells apart."""
        first = start * _NUMBER_BYTES
        step = stride * _NUMBER_BYTES
        places = range(first, first + count * step, step)
        return [self._memory[place : place + _DIGEST_BYTES] for place in places]

    def find_digest(self, digest: bytes, start: int, end: int) -> int | None:
        """Return the cell where a digest stands among those from `start` to `end`."""
        # Numbers never look like one but by a chance of 2 to the power of -128.
        place = self._memory.find(digest, start * _NUMBER_BYTES, end * _NUMBER_BYTES)
        return None if place < 0 else place // _NUMBER_BYTES

    def read_digest(self, cell: int) -> bytes:
        """Return the digest that begins at a cell."""
        place = cell * _NUMBER_BYTES
        return self._memory[place : place + _DIGEST_BYTES]

    def write_digest(self, cell: int, digest: bytes) -> None:
        """Write the digest that begins at a cell."""
        place = cell * _NUMBER_BYTES
        self._memory[place : place + _DIGEST_BYTES] = digest


class Rows:
    """Rows of one kind, by name.

    All methods are for whoever holds the file's lock, but for `ensure`; `find`, `owned` and `total`
    may be used without it for a glance at numbers that may have changed since.
    """

    def __init__(self, file: SharedFile, kind: int, start: int, count: int) -> None:
        self._file = file
        self._start = start
        self._count = count
        self._stride = _row_cells(kind, file.num_workers)
        self.num_own = _own_cells(kind, file.num_workers)
        self._own_at = _DIGEST_CELLS + _COMMON[kind]
        self._known: dict[str, tuple[int, bytes]] = {}

    def find(self, name: str) -> int | None:
        """Return the cell where a name's common numbers begin, None if it has no row."""
        known = self._known.get(name)
        if known is not None and self._file.read_digest(known[0] - _DIGEST_CELLS) == known[1]:
            return known[0]
        digest = _digest(name)
        cell = self._file.find_digest(digest, self._start, self._end())
        if cell is None:
            return None
        place = cell + _DIGEST_CELLS
        self._known[name] = (place, digest)
        return place

    def add(self, name: str) -> int:
        """Give a name a row of zeros and return where it begins.

        When all are taken, the one unused for longest is, by its first number: its time of use.
        """
        digests = self._file.digests(self._start, self._count, self._stride)
        empty = bytes(_DIGEST_BYTES)
        number = digests.index(empty) if empty in digests else self._find_idle()
        place = self._start + number * self._stride + _DIGEST_CELLS
        for cell in range(place, place + self._stride - _DIGEST_CELLS):
            self._file.cells[cell] = 0.0
        digest = _digest(name)
        self._file.write_digest(place - _DIGEST_CELLS, digest)
        self._known[name] = (place, digest)
        return place

    def ensure(self, name: str) -> int:
        """Return where a name's numbers begin, after giving it a row; takes the lock by itself."""
        place = self.find(name)
        if place is not None:
            return place
        with self._file.lock:
            place = self.find(name)
            return self.add(name) if place is None else place

    def own(self, place: int) -> int:
        """Return the cell where this worker's own numbers of a row begin."""
        return place + self._own_at - _DIGEST_CELLS + self._file.worker * self.num_own

    def owned(self, place: int) -> list[list[float]]:
        """Return each worker's own numbers of a row."""
        first = place + self._own_at - _DIGEST_CELLS
        starts = range(first, first + self._file.num_workers * self.num_own, self.num_own)
        return [list(self._file.cells[start : start + self.num_own]) for start in starts]

    def total(self, place: int, number: int) -> float:
        """Return the sum over all workers of one of their own numbers of a row."""
        first = place + self._own_at - _DIGEST_CELLS
        last = first + self._file.num_workers * self.num_own
        # Slices of doubles need a step of one, so the few cells are taken one by one.
        cells = self._file.cells
        return sum(cells[cell] for cell in range(first + number, last, self.num_own))

    def clear_worker(self, worker: int) -> None:
        """Set a worker's own numbers to zero in all rows."""
        first = self._start + self._own_at + worker * self.num_own
        for place in range(first, first + self._count * self._stride, self._stride):
            for cell in range(place, place + self.num_own):
                self._file.cells[cell] = 0.0

    def _find_idle(self) -> int:
        places = range(self._start + _DIGEST_CELLS, self._end(), self._stride)
        idle = [
            (self._file.cells[place], number)
            for number, place in enumerate(places)
            if self.total(place, 0) == 0
        ]
        if not idle:
            raise CapacityError(f"all {self._count} rows that workers share are in use: try later")
        return min(idle)[1]

    def _end(self) -> int:
        return self._start + self._count * self._stride


class FileLock:
    """A lock among threads and processes that nobody waits for long.

    A process that was stopped while it held it must not stop all others: after `patience_s` they
    go on without it, and `num_broken` counts how often.
    """

    def __init__(self, path: Path, patience_s: float = 0.05) -> None:
        self._handle = os.open(path, os.O_RDWR)
        self._among_threads = threading.Lock()
        self._patience_s = patience_s
        self._impatient_until = 0.0
        self._is_held = False
        self.num_broken = 0

    def __enter__(self) -> None:
        self._among_threads.acquire()
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_held = True
        except BlockingIOError:
            self._is_held = self._wait()

    def __exit__(self, *_: object) -> None:
        if self._is_held:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
        self._among_threads.release()

    def _wait(self) -> bool:
        began = time.monotonic()
        patience_s = self._patience_s if began > self._impatient_until else self._patience_s / 50
        while time.monotonic() - began < patience_s:
            os.sched_yield()
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                continue
        self.num_broken += 1
        self._impatient_until = time.monotonic() + 1.0
        return False


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _row_cells(kind: int, num_workers: int) -> int:
    return _DIGEST_CELLS + _COMMON[kind] + _own_cells(kind, num_workers) * num_workers


def _own_cells(kind: int, num_workers: int) -> int:
    if kind != LATEST:
        return _OWN[kind]
    # And how many there were.
    return 1 + max(_FEWEST_LATEST, _MOST_LATEST // num_workers)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
