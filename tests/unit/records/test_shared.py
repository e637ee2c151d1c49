"""State shared by worker processes: exact counts among real processes, whatever dies or stops."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moestro.api.key_terms import KeyTerms
from moestro.errors import CapacityError, ConfigError, MoestroError, StorageError
from moestro.records.busy import BusyBackends
from moestro.records.counts import NUM_COUNTS, SharedCounts
from moestro.records.latest import SharedLatest
from moestro.records.meters import Estimate, Meters
from moestro.records.shared import FileLock, SharedFile, create_shared

NUM_WORKERS = 3
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path() -> Iterator[Path]:
    path = create_shared(NUM_WORKERS, num_backends=4, num_keys=8)
    yield path
    path.unlink()


def run_workers(target: Callable[..., None], *arguments: Any) -> list[int]:
    """Run a function in every worker's process at once; each puts one number."""
    results: Any = SPAWN.Queue()
    together = SPAWN.Barrier(NUM_WORKERS)
    workers = [
        SPAWN.Process(target=target, args=(worker, together, results, *arguments))
        for worker in range(NUM_WORKERS)
    ]
    for process in workers:
        process.start()
    numbers = [results.get(timeout=120) for _ in workers]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0] * NUM_WORKERS
    return numbers


def enter_often(worker: int, together: Any, results: Any, path: Path) -> None:
    backends = BusyBackends(SharedFile(path, worker))
    together.wait()
    results.put(sum(backends.try_enter("a", 100) for _ in range(200)))


def enter_and_leave(worker: int, together: Any, results: Any, path: Path) -> None:
    backends = BusyBackends(SharedFile(path, worker))
    together.wait()
    most = 0
    for _ in range(2000):
        if backends.try_enter("a", 2):
            most = max(most, backends.num_in_flight("a"))
            backends.leave("a")
    results.put(most)


def hold_often(worker: int, together: Any, results: Any, path: Path, terms: KeyTerms) -> None:
    # One moment for all, so that nothing refills.
    meters = Meters(SharedFile(path, worker), clock=lambda: 1000.0, calendar=lambda: 1e9)
    together.wait()
    count = 0
    for _ in range(300):
        try:
            hold = meters.hold(terms, Estimate(num_tokens=10, cost_usd=0.25))
        except MoestroError:
            continue
        count += 1
        if terms.concurrent_requests is None:
            meters.settle(hold, 0.25, 10)
    results.put(count)


def test_workers_together_never_exceed_a_backends_limit(path: Path) -> None:
    assert sum(run_workers(enter_often, path)) == 100
    assert BusyBackends(SharedFile(path, 0)).num_in_flight("a") == 100


def test_what_entered_and_left_leaves_nothing(path: Path) -> None:
    assert max(run_workers(enter_and_leave, path)) <= 2
    assert BusyBackends(SharedFile(path, 0)).num_in_flight("a") == 0


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({"requests_per_minute": 70}, 70),
        ({"tokens_per_minute": 700}, 70),
        ({"budget_usd": 20.0}, 80),
        ({"budget_tokens": 1000, "budget_period": "day"}, 100),
        ({"concurrent_requests": 50}, 50),
        ({"requests_per_minute": 70, "budget_usd": 10.0, "budget_period": "total"}, 40),
    ],
)
def test_workers_together_give_away_exactly_a_keys_means(
    path: Path, limits: dict[str, Any], count: int
) -> None:
    terms = KeyTerms(name="alice", **limits)
    assert sum(run_workers(hold_often, path, terms)) == count


def count_often(worker: int, together: Any, results: Any, path: Path) -> None:
    counts = SharedCounts(SharedFile(path, worker))
    together.wait()
    for _ in range(2000):
        counts.count("model a", (1, 0, 0.5))
    results.put(worker)


def test_what_workers_count_is_counted_by_all_of_them_together_and_outlives_them(
    path: Path,
) -> None:
    began = time.time()
    assert run_workers(count_often, path)
    first, second = (SharedFile(path, worker) for worker in (0, 1))
    first.clear_worker(1)
    assert SharedCounts(first).counted("model a") == (6000, 0, 3000, 0, 0, 0)
    assert SharedCounts(second).counted("model b") == (0,) * NUM_COUNTS
    assert SharedCounts(first).began_at == pytest.approx(began, abs=60)


def note_often(worker: int, together: Any, results: Any, path: Path) -> None:
    latest = SharedLatest(SharedFile(path, worker))
    together.wait()
    for number in range(100):
        latest.note("model a", 1000 * worker + number)
    results.put(worker)


def test_the_latest_values_of_all_workers_are_seen_by_each(path: Path) -> None:
    assert run_workers(note_often, path)
    # 256 in all, in equal parts.
    wanted = [1000 * worker + number for worker in range(NUM_WORKERS) for number in range(15, 100)]
    for worker in range(NUM_WORKERS):
        latest = SharedLatest(SharedFile(path, worker))
        assert sorted(latest.latest("model a")) == wanted
    assert latest.latest("model b") == []
    latest.note("model b", 0.5)
    assert latest.latest("model b") == [0.5]


def test_a_dead_workers_requests_are_cleared(path: Path) -> None:
    first, second = (SharedFile(path, worker) for worker in (0, 1))
    terms = KeyTerms(name="alice", concurrent_requests=2, budget_usd=1.0)
    for file in (first, second):
        assert BusyBackends(file).try_enter("a", 2)
        Meters(file).hold(terms, Estimate(cost_usd=0.5))
    assert not BusyBackends(second).try_enter("a", 2)
    with pytest.raises(CapacityError):
        Meters(second).hold(terms, Estimate())
    second.clear_worker(0)
    assert BusyBackends(second).num_in_flight("a") == 1
    Meters(second).hold(terms, Estimate(cost_usd=0.5))


def test_numbers_are_read_as_they_were_written(path: Path) -> None:
    one, other = (BusyBackends(SharedFile(path, worker)) for worker in (0, 1))
    assert one.read_numbers("a") == (0.0,) * 7
    one.change_numbers("a", lambda before: (before[0] + 1, 2, 3, 4.5, 5, 6, 7))
    assert other.read_numbers("a") == (1, 2, 3, 4.5, 5, 6, 7)
    assert other.read_numbers("b") == (0.0,) * 7


def test_the_row_unused_for_longest_makes_room_and_a_busy_one_never(path: Path) -> None:
    backends = BusyBackends(SharedFile(path, 0))
    for name in "abcd":
        assert backends.try_enter(name, 5)
    with pytest.raises(CapacityError, match="all 4 rows"):
        backends.try_enter("e", 5)
    for name in "cb":
        backends.leave(name)
    assert backends.try_enter("e", 5)
    assert backends.num_in_flight("c") == 0
    assert [backends.num_in_flight(name) for name in "ade"] == [1, 1, 1]


def hold_the_lock(path: Path, ready: Any) -> None:
    with FileLock(path):
        ready.set()
        time.sleep(300)


def test_a_process_stopped_with_the_lock_holds_others_up_for_a_moment_only(path: Path) -> None:
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold_the_lock, args=(path, ready))
    holder.start()
    assert holder.pid is not None
    try:
        assert ready.wait(120)
        os.kill(holder.pid, signal.SIGSTOP)
        file = SharedFile(path, 0)
        began = time.perf_counter()
        for _ in range(20):
            BusyBackends(file).change_numbers("a", lambda old: (old[0] + 1, *old[1:]))
        # Far from a backend's limit nobody needs it.
        assert all(BusyBackends(file).try_enter("a", 100) for _ in range(20))
        assert time.perf_counter() - began < 10
        assert file.lock.num_broken == 20
    finally:
        holder.kill()
        holder.join()
    with file.lock:
        assert file.lock.num_broken == 20


def test_what_is_no_shared_state_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="from 0 on"):
        SharedFile(path, NUM_WORKERS)
    with pytest.raises(ConfigError, match="0 workers"):
        create_shared(0)
    other = tmp_path / "other"
    other.write_bytes(bytes(64))
    with pytest.raises(StorageError, match="no shared state"):
        SharedFile(other, 0)
    with pytest.raises(StorageError, match="no shared state"):
        SharedFile(tmp_path / "none", 0)


def test_only_its_owner_can_read_it(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_disk_that_is_full_is_told_and_no_file_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("moestro.records.shared._MEMORY_FOLDER", tmp_path / "none")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StorageError, match="No space left"):
        create_shared(1, num_keys=5)
    assert not list(tmp_path.iterdir())
