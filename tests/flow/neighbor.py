"""A neighbor who reads one stream after another, and notes the longest wait between two pieces.

    python -m tests.flow.neighbor PORT KEY '{"model": "scripted", ...}'

In a process of its own: what a test does with its processor must not look like a stall. Each line
on standard input asks for a report: pieces so far, longest wait in seconds since the last report,
streams that were cut short. Next: siege.py.
"""

import json
import socket
import sys
import threading
import time

_HEAD = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
_END = b"data: [DONE]\n\n"


class Neighbor:
    """Reads streams for ever."""

    def __init__(self, port: int, key: str, body: str) -> None:
        self._port = port
        self._request = (
            f"{_HEAD}x-api-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        self._num_pieces = 0
        self._num_cut = 0
        self._longest_s = 0.0
        self._latest = time.monotonic()

    def read_all(self) -> None:
        """Read one stream after another."""
        while True:
            with socket.create_connection(("127.0.0.1", self._port)) as connection:
                connection.sendall(self._request)
                self._num_cut += not self._read(connection)

    def report(self) -> str:
        """Say how it went since the last report."""
        waited_s = max(self._longest_s, time.monotonic() - self._latest)
        self._longest_s = 0.0
        return json.dumps([self._num_pieces, waited_s, self._num_cut])

    def _read(self, connection: socket.socket) -> bool:
        tail = b""
        while data := connection.recv(65536):
            now = time.monotonic()
            self._longest_s = max(self._longest_s, now - self._latest)
            self._latest = now
            self._num_pieces += data.count(b"data: ")
            tail = (tail + data)[-64:]
            if _END in tail:
                return True
        return False


def main() -> None:
    """Read in a thread, report in this one."""
    neighbor = Neighbor(int(sys.argv[1]), *sys.argv[2:])
    threading.Thread(target=neighbor.read_all, daemon=True).start()
    for _ in sys.stdin:
        print(neighbor.report(), flush=True)


if __name__ == "__main__":
    main()
