"""Clients that all workers of a host count together."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moestro.records.clients import SharedClients
from moestro.records.shared import SharedFile, create_shared


@pytest.fixture
def path() -> Iterator[Path]:
    path = create_shared(2, num_keys=4)
    yield path
    path.unlink()


def test_what_one_worker_takes_from_a_client_is_gone_for_the_other(path: Path) -> None:
    here, there = (SharedClients(SharedFile(path, worker)) for worker in (0, 1))
    client = here.find("key ann", 60, 1000, now=0.0)
    client.change_open(1)
    assert client.requests is not None
    assert client.tokens is not None
    client.requests.take(1, now=0.0)
    client.tokens.take(300, now=0.0)
    same = there.find("key ann", 60, 1000, now=0.0)
    same.change_open(1)
    assert same.requests is not None
    assert same.tokens is not None
    assert (same.requests.level(0.0), same.tokens.level(0.0)) == (59, 700)
    assert client.num_open == same.num_open == 2


def test_a_client_without_limits_has_nothing_to_take_from(path: Path) -> None:
    client = SharedClients(SharedFile(path, 0)).find("key ann", None, None, now=0.0)
    assert client.requests is None
    assert client.tokens is None
