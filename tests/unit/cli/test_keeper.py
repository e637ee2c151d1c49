"""A kept process: started again when it dies, told things, ended in good order."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moestro.cli.keeper import Keeper
from moestro.cli.supervisor import Supervisor
from moestro.errors import ConfigError
from tests.unit.cli import kept

PATIENCE_S = 30.0


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page"
    path.touch()
    return path


@pytest.fixture
def keeper(page: Path) -> Iterator[Keeper]:
    kept_process = Keeper("a", kept.note, (page, "hello"))
    kept_process.start()
    yield kept_process
    kept_process.end()


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def lines(page: Path) -> list[str]:
    return page.read_text().splitlines()


def watch(keeper: Keeper) -> int:
    end = time.monotonic() + PATIENCE_S
    while (status := keeper.look()) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return status


def test_a_killed_process_is_started_again(page: Path, keeper: Keeper) -> None:
    until(lambda: lines(page) == ["hello"])
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGKILL)
    assert watch(keeper) == -signal.SIGKILL
    assert not keeper.is_over
    until(lambda: keeper.look() is None and keeper.is_alive)
    until(lambda: lines(page) == ["hello", "hello"])
    assert keeper.restarts == 1


def test_messages_reach_the_process_and_its_successor_starts_with_what_was_said(
    page: Path, keeper: Keeper
) -> None:
    keeper.tell("news", (page, "with news"))
    until(lambda: lines(page) == ["hello", "news"])
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGKILL)
    watch(keeper)
    until(lambda: keeper.look() is None and lines(page)[-1] == "with news")


def test_a_users_mistake_is_not_tried_again(page: Path) -> None:
    keeper = Keeper("a", kept.fail, (page, 2))
    keeper.start()
    assert watch(keeper) == 2
    assert keeper.is_over


def test_pauses_between_quick_deaths_grow(page: Path) -> None:
    keeper = Keeper("a", kept.fail, (page, 1))
    keeper.start()
    pauses = []
    for _ in range(3):
        assert watch(keeper) == 1
        assert keeper.due_at is not None
        pauses.append(keeper.due_at - time.monotonic())
        until(lambda: (keeper.look() is None and keeper.is_alive) or keeper.due_at is None)
    keeper.end()
    assert pauses[0] < pauses[1] < pauses[2]


def test_a_process_notices_that_its_keeper_is_gone(page: Path) -> None:
    keeper = Keeper("a", kept.note, (page, "hello"))
    keeper.start()
    until(lambda: lines(page) == ["hello"])
    assert keeper._pipe is not None
    keeper._pipe.close()
    until(lambda: lines(page) == ["hello", "gone"])
    keeper._pipe = None
    keeper.end()


def run(supervisor: Supervisor, meanwhile: Callable[[], None]) -> int:
    """Run it in this thread, the only one that may hear signals; another one acts."""
    actor = threading.Thread(target=meanwhile)
    actor.start()
    status = supervisor.run()
    actor.join()
    return status


def tell(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_supervisor_ends_workers_and_then_models(page: Path) -> None:
    keepers = [Keeper(name, kept.note, (page, name)) for name in ("model", "worker")]
    supervisor = build(keepers[0], keepers[1])

    def act() -> None:
        until(lambda: sorted(lines(page)) == ["model", "worker"])
        tell(signal.SIGTERM)

    assert run(supervisor, act) == 0
    assert not any(each.is_alive for each in keepers)


def test_a_second_signal_ends_at_once_what_ignores_the_first(page: Path) -> None:
    worker = Keeper("worker", kept.dawdle, (page,))

    def act() -> None:
        until(lambda: lines(page) == ["dawdling"])
        tell(signal.SIGTERM)
        time.sleep(0.3)
        tell(signal.SIGINT)

    began = time.monotonic()
    assert run(build(None, worker), act) == 0
    assert time.monotonic() - began < PATIENCE_S


def test_a_bad_configuration_leaves_the_old_one(
    page: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Keeper("worker", kept.note, (page, "hello"))

    def refuse() -> None:
        raise ConfigError("models.a: unknown key")

    def act() -> None:
        until(lambda: lines(page) == ["hello"])
        tell(signal.SIGHUP)
        until(lambda: "stays as it was" in caplog.text)
        tell(signal.SIGTERM)

    supervisor = Supervisor(
        {}, {"worker": worker}, drain_s=5, reload=refuse, on_death=lambda _: None
    )
    assert run(supervisor, act) == 0
    assert "unknown key" in caplog.text


def test_a_dead_worker_is_reported_and_replaced(page: Path) -> None:
    worker, deaths = Keeper("worker", kept.note, (page, "hello")), list[str]()
    supervisor = build(None, worker, deaths.append)

    def act() -> None:
        until(lambda: lines(page) == ["hello"])
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: lines(page) == ["hello", "hello"])
        tell(signal.SIGTERM)

    assert run(supervisor, act) == 0
    assert deaths == ["worker"]


def test_a_model_that_is_retired_ends_without_being_started_again(page: Path) -> None:
    model, worker = (Keeper(name, kept.note, (page, name)) for name in ("model", "worker"))
    supervisor = build(model, worker)
    supervisor._reload = lambda: supervisor.retire("model")

    def act() -> None:
        until(lambda: len(lines(page)) == 2)
        tell(signal.SIGHUP)
        until(lambda: not model.is_alive)
        tell(signal.SIGTERM)

    assert run(supervisor, act) == 0
    assert model.restarts == 0


def test_when_no_worker_can_run_the_supervisor_ends_with_its_users_mistake(page: Path) -> None:
    assert build(None, Keeper("worker", kept.fail, (page, 2))).run() == 2


def build(
    model: Keeper | None, worker: Keeper, on_death: Callable[[str], None] = lambda _: None
) -> Supervisor:
    models = {} if model is None else {"model": model}
    workers = {"worker": worker}
    return Supervisor(models, workers, drain_s=5, reload=lambda: None, on_death=on_death)
