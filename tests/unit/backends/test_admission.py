"""The queue's door: what may wait, what is refused, and when to come back."""

import pytest

from moestro.backends.admission import Admission
from moestro.engine.config import QueueConfig
from moestro.errors import CapacityError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock | None = None, **limits: int) -> Admission:
    return Admission(QueueConfig(**limits), max_batch=2, clock=clock or Clock())


def test_who_need_not_wait_does_not_count_as_waiting() -> None:
    door = admission(max_requests=1)
    tickets = [door.enter().__enter__() for _ in range(3)]
    assert door.num_waiting == 3
    with pytest.raises(CapacityError, match="3 requests are waiting, limit 3"):
        door.enter()
    tickets[0].start()
    with pytest.raises(CapacityError, match="limit 2"):
        door.enter()
    tickets[1].start()
    with pytest.raises(CapacityError, match="limit 1"):
        door.enter()
    tickets[2].start()
    with door.enter():
        assert (door.num_running, door.num_waiting) == (3, 1)


def test_every_choice_takes_a_place_among_those_that_run() -> None:
    door = admission(max_requests=1)
    with door.enter(num_choices=2) as ticket:
        ticket.start()
        with door.enter(), pytest.raises(CapacityError):
            door.enter()


def test_a_place_is_given_up_whatever_happens() -> None:
    door = admission(max_requests=0)
    for _ in range(5):
        with pytest.raises(KeyError), door.enter():
            raise KeyError
    assert door.num_waiting == 0


def test_tokens_that_wait_are_limited_but_one_alone_is_not() -> None:
    door = admission(max_tokens=100)
    with door.enter() as long, door.enter() as short, door.enter() as next_one:
        long.weigh(5000)
        with pytest.raises(CapacityError, match="5000 tokens are waiting"):
            short.weigh(1)
        long.start()
        short.weigh(60)
        with pytest.raises(CapacityError, match="60 tokens are waiting, and 41 more"):
            next_one.weigh(41)
        next_one.weigh(40)
        assert door.num_waiting_tokens == 100


@pytest.mark.parametrize(("pace_s", "expected_s"), [(0.01, 1), (4, 4), (1000, 60)])
def test_the_time_to_come_back_follows_the_pace_of_the_queue(
    pace_s: float, expected_s: float
) -> None:
    clock = Clock()
    door = admission(clock, max_requests=2)
    for _ in range(10):
        with door.enter() as ticket:
            ticket.start()
            ticket.start()
        clock.now += pace_s
    running = [door.enter().__enter__() for _ in range(2)]
    for ticket in running:
        ticket.start()
    waiting = [door.enter().__enter__() for _ in range(2)]
    with pytest.raises(CapacityError) as refused:
        door.enter()
    assert refused.value.retry_after_s == pytest.approx(expected_s, abs=1)
    assert len(waiting) == door.num_waiting


def test_without_experience_a_second_is_guessed() -> None:
    door = admission(max_requests=0)
    tickets = [door.enter().__enter__() for _ in range(2)]
    with pytest.raises(CapacityError, match="try again in 1 s") as refused:
        door.enter()
    assert refused.value.retry_after_s == 1
    assert len(tickets) == 2
