"""A PostgreSQL server of its own for tests: in a new folder, on a loopback port, by a plain user.

Knows no tables. Next: conftest.py.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg

PLAIN_USERS = ("postgres", "nobody")


def find_programs() -> Path | None:
    """Return the folder of the newest server that is installed, None without one."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb")
    return folders[-1].parent if folders else Path(found).parent if found else None


class Cluster:
    """Starts and stops; `url` is of a database that `new_database` made."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = _plain_user()
        # In memory where that is possible: a database is hundreds of files.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="moestro-pg-", dir=memory))
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._data = self.folder / "data"
        self.port = _free_port()
        self._num_databases = 0
        self._run(
            "initdb", "-D", self._data, "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8"
        )

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
            f" -c unix_socket_directories={self.folder}"
        )
        self._run(
            "pg_ctl", "-D", self._data, "-w", "-o", options, "-l", self.folder / "log", "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        self._num_databases += 1
        name = f"test{self._num_databases}"
        address = f"host=127.0.0.1 port={self.port} user=tester dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        if self._user is not None:
            ids = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}"]
            command = ["setpriv", *ids, "--clear-groups", *command]
        # Into a file: the server would hold a pipe open for as long as it lives.
        with (self.folder / "out").open("ab") as out:
            subprocess.run(command, check=True, stdout=out, stderr=out, cwd="/", timeout=120)


def _plain_user() -> "pwd.struct_passwd | None":
    if os.geteuid() != 0:
        return None
    names = {user.pw_name: user for user in pwd.getpwall()}
    return next(names[name] for name in PLAIN_USERS if name in names)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
