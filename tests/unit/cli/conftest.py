"""Records of one worker, on a database of their own. Next: test_floor_watch.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moestro.records.config import RecordsConfig
from moestro.records.records import Records


@pytest.fixture
def start_records(tmp_path: Path) -> Iterator[Callable[..., Records]]:
    """Start records; all of them end with the test."""
    started = []

    def start(**settings: Any) -> Records:
        url = f"sqlite:///{tmp_path}/records.db"
        records = Records(RecordsConfig(url=url, flush_s=0.02, poll_s=0.05, **settings))
        records.start()
        started.append(records)
        return records

    yield start
    for records in started:
        records.stop()
