"""Every test of records runs on SQLite and on PostgreSQL; without a server the latter is skipped.

Next: test_keys.py.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from moestro.records.config import RecordsConfig
from moestro.records.database import Database
from moestro.records.records import Records
from tests.unit.records.cluster import Cluster, find_programs


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    cluster = Cluster(programs)
    try:
        cluster.start()
        yield cluster
        cluster.stop()
    finally:
        cluster.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    found: str = request.getfixturevalue("cluster").new_database()
    return found


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with closing(Database(RecordsConfig(url=url))) as database:
        database.open()
        yield database


@pytest.fixture
def start(url: str) -> Iterator[Callable[..., Records]]:
    """Start records of one worker; all of them end with the test."""
    started = []

    def start_one(*, settings: dict[str, Any] | None = None, **options: Any) -> Records:
        config = RecordsConfig(**{"url": url, "flush_s": 0.02, "poll_s": 0.05, **(settings or {})})
        records = Records(config, **options)
        records.start()
        started.append(records)
        return records

    yield start_one
    for records in started:
        records.stop()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            time.sleep(0.01)

    return wait
