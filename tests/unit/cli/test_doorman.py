"""Connections are shared among workers, and none is left waiting where a worker is gone."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from moestro.cli.doorman import Doorman
from moestro.records.shared import SharedFile, create_shared
from moestro.records.turns import Turns

NUM = 16


@pytest.fixture
def shared() -> Iterator[Path]:
    path = create_shared(2)
    yield path
    path.unlink()


class Worker:
    """One that takes connections and holds them."""

    def __init__(self, shared: Path, number: int, listener: socket.socket) -> None:
        self.turns = Turns(SharedFile(shared, number))
        self.held: list[socket.socket] = []
        self.doorman = Doorman(listener.dup(), self.turns, self.take)

    async def take(self, connection: socket.socket) -> None:
        self.held.append(connection)
        self.turns.note(len(self.held))

    def close(self) -> None:
        self.doorman.close()
        self.doorman._listener.close()
        for each in self.held:
            each.close()


def connect(listener: socket.socket, num: int) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(num)]


async def until_held(*workers: Worker, num: int) -> None:
    async with asyncio.timeout(20):
        while sum(len(each.held) for each in workers) < num:
            await asyncio.sleep(0.005)


def test_connections_that_come_at_once_are_shared_evenly(shared: Path) -> None:
    async def work() -> list[int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            workers = [Worker(shared, number, listener) for number in range(2)]
            clients = connect(listener, NUM)
            await until_held(*workers, num=NUM)
            found = [len(each.held) for each in workers]
            for each in (*workers, *clients):
                each.close()
            return found

    assert asyncio.run(work()) == [NUM // 2, NUM // 2]


def test_a_worker_that_takes_none_leaves_none_waiting(shared: Path) -> None:
    async def work() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            worker = Worker(shared, 0, listener)
            # Alive as far as the numbers say, but it does not look at the port.
            Turns(SharedFile(shared, 1))
            clients = connect(listener, NUM)
            await until_held(worker, num=NUM)
            found = len(worker.held)
            for each in (worker, *clients):
                each.close()
            return found

    assert asyncio.run(work()) == NUM


def test_a_closed_doorman_takes_nothing(shared: Path) -> None:
    async def work() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            worker = Worker(shared, 0, listener)
            worker.doorman.close()
            clients = connect(listener, 1)
            await asyncio.sleep(0.05)
            found = len(worker.held)
            for each in (worker, *clients):
                each.close()
            return found

    assert asyncio.run(work()) == 0


def test_the_next_connection_is_for_whoever_has_fewer(shared: Path) -> None:
    one, other = (Turns(SharedFile(shared, number)) for number in range(2))
    assert one.is_mine()
    assert other.is_mine()
    one.note(1)
    assert not one.is_mine()
    assert other.is_mine()
    other.note(3)
    assert one.is_mine()
    assert not other.is_mine()
    SharedFile(shared, 1).clear_worker(1)
    assert not one.is_mine()
