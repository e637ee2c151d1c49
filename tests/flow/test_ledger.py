"""`moestro serve fleet.toml` is told to end, or loses its scribe: every request is in the ledger.

Next: tests/unit/records/test_scribe.py.
"""

import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import tomli_w

from tests.flow.json_upstream import json_upstream
from tests.flow.program import TIMEOUT_S, start

ANSWER = {"model": "m", "choices": [{"message": {"content": "yes"}}]}
NUM_ASKED = 60


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Path]:
    with json_upstream(lambda _: ANSWER) as url:
        tables = {
            "models": [{"name": "m", "backends": [{"url": url}]}],
            # So long that nothing is written before the end unless it is for the end.
            "records": {"url": f"sqlite:///{tmp_path}/records.db", "flush_s": 30.0},
            "workers": 2,
        }
        path = tmp_path / "fleet.toml"
        path.write_text(tomli_w.dumps(tables))
        yield path


def find_scribe(supervisor: int) -> int:
    """Return the id of the child that has a lower priority than the others."""
    end, own = time.monotonic() + TIMEOUT_S, os.getpriority(os.PRIO_PROCESS, supervisor)
    while time.monotonic() < end:
        text = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
        children = map(int, text.split())
        found = [each for each in children if os.getpriority(os.PRIO_PROCESS, each) > own]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no process writes")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("is_killed", [False, True])
def test_every_request_is_in_the_ledger_after_an_orderly_end(fleet: Path, is_killed: bool) -> None:
    with start("serve", fleet, "--port", "0", cwd=fleet.parent) as process:
        assert process.stderr is not None
        try:
            found = re.search(r"at (http://\S+)/v1$", process.stderr.readline().strip())
            assert found
            body = {"model": "m", "messages": [{"role": "user", "content": "say"}]}
            for _ in range(NUM_ASKED):
                answer = httpx.post(f"{found[1]}/v1/chat/completions", json=body, timeout=TIMEOUT_S)
                assert answer.status_code == 200
            if is_killed:
                os.kill(find_scribe(process.pid), signal.SIGKILL)
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == 0
            assert ("the ledger's process ended with -9" in process.stderr.read()) == is_killed
        finally:
            process.kill()
    with closing(sqlite3.connect(fleet.parent / "records.db")) as connection:
        counted = connection.execute("SELECT count(*) FROM moestro_decisions").fetchone()
    assert counted == (NUM_ASKED,)
