"""A burst is as long as its seconds allow, by what steps took of late."""

from moestro.engine.stride import Stride


def test_nothing_is_known_at_first_so_it_is_a_single_step() -> None:
    assert Stride(1.0).steps(1, 100) == 1


def test_a_burst_fits_its_seconds() -> None:
    stride = Stride(0.01)
    stride.observe(1, 1, 0.001)
    assert stride.steps(1, 100) == 10
    assert stride.steps(1, 4) == 4
    assert stride.steps(1, 2) == 2
    assert stride.steps(1, 0) == 1


def test_a_step_that_takes_as_long_as_a_burst_may_is_not_repeated() -> None:
    stride = Stride(0.01)
    stride.observe(8, 1, 0.006)
    assert stride.steps(8, 100) == 1


def test_a_burst_counts_by_its_step() -> None:
    stride = Stride(0.01)
    stride.observe(1, 5, 0.01)
    assert stride.steps(1, 100) == 5


def test_one_slow_step_is_shrugged_off() -> None:
    stride = Stride(0.01)
    for seconds in (0.001, 0.001, 0.5):
        stride.observe(1, 1, seconds)
    assert stride.steps(1, 100) == 10


def test_each_number_of_answers_is_learned_by_itself() -> None:
    stride = Stride(0.01)
    stride.observe(1, 1, 0.001)
    assert stride.steps(2, 100) == 1


def test_no_seconds_means_no_bursts_and_no_time_no_division() -> None:
    stride = Stride(0.0)
    stride.observe(1, 1, 0.001)
    assert stride.steps(1, 100) == 1
    fast = Stride(0.01)
    fast.observe(1, 1, 0.0)
    assert 1 < fast.steps(1, 100) < 100
