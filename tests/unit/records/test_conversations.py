"""Conversations keep their model whichever worker gets the next turn, for as long as was said."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moestro.records.conversations import SharedConversations
from moestro.records.shared import SharedFile, create_shared


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path() -> Iterator[Path]:
    path = create_shared(2, num_backends=2, num_keys=2, num_conversations=16)
    yield path
    path.unlink()


def test_the_next_turn_may_come_to_another_worker(path: Path) -> None:
    clock = Clock()
    one, other = (SharedConversations(SharedFile(path, worker), 60, clock) for worker in (0, 1))
    assert one.find("a") is None
    one.keep("a", "small")
    assert other.find("a") == "small"
    other.keep("a", "gro\u00df")
    assert one.find("a") == "gro\u00df"
    assert one.find("b") is None


def test_a_conversation_is_forgotten_some_time_after_its_last_turn(path: Path) -> None:
    clock = Clock()
    conversations = SharedConversations(SharedFile(path, 0), 60, clock)
    conversations.keep("a", "small")
    clock.now += 59
    conversations.keep("a", "small")
    clock.now += 59
    assert conversations.find("a") == "small"
    clock.now += 2
    assert conversations.find("a") is None


def test_the_table_is_bounded_and_the_latest_is_always_there(path: Path) -> None:
    clock = Clock()
    conversations = SharedConversations(SharedFile(path, 0), 60, clock)
    for number in range(100):
        clock.now += 0.01
        conversations.keep(f"c{number}", f"m{number}")
        assert conversations.find(f"c{number}") == f"m{number}"
    found = [conversations.find(f"c{number}") for number in range(100)]
    assert all(name in (None, f"m{number}") for number, name in enumerate(found))
    assert 4 <= sum(name is not None for name in found) <= 16


def test_a_model_with_a_very_long_name_is_not_remembered(path: Path) -> None:
    conversations = SharedConversations(SharedFile(path, 0), 60)
    conversations.keep("a", "x" * 40)
    assert conversations.find("a") is None
    conversations.keep("a", "x" * 39)
    assert conversations.find("a") == "x" * 39


def test_conversations_and_counts_do_not_touch_each_other(path: Path) -> None:
    file = SharedFile(path, 1)
    conversations = SharedConversations(file, 60)
    for number in range(50):
        conversations.keep(f"c{number}", "m" * 39)
    with file.lock:
        assert file.backends.find("x") is None
        places = [rows.add(name) for rows in (file.backends, file.keys) for name in "xy"]
        for rows, place in zip([file.backends] * 2 + [file.keys] * 2, places, strict=True):
            file.cells[rows.own(place)] = 7.0
    assert any(conversations.find(f"c{number}") == "m" * 39 for number in range(50))
    file.clear_worker(1)
    assert sum(conversations.find(f"c{number}") is not None for number in range(50)) > 3
