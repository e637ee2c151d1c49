"""What is remembered of the last minutes: bounded, dated by age, and without anybody's text.

Next: test_watched.py.
"""

from moestro.api.stats import Stats
from moestro.ui.recent import HORIZON_S, MOST_ERROR_KINDS, MOST_SAMPLES, Recent


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_waits_have_a_median_and_a_95th_percentile_by_model() -> None:
    recent = Recent(Clock())
    for number in range(1, 101):
        recent.add_first_token("small", number / 100)
    recent.add_first_token("large", 9.0)
    assert recent.first_token("small") == {"count": 100, "median_s": 0.505, "p95_s": 0.95}
    assert recent.first_token("large") == {"count": 1, "median_s": 9.0, "p95_s": 9.0}


def test_a_model_that_nobody_asked_has_no_wait() -> None:
    assert Recent().first_token("small") == {"count": 0, "median_s": None, "p95_s": None}


def test_a_wait_is_forgotten_when_it_is_older_than_the_charts() -> None:
    clock = Clock()
    recent = Recent(clock)
    recent.add_first_token("small", 1.0)
    clock.now += HORIZON_S + 1
    recent.add_first_token("small", 3.0)
    assert recent.first_token("small")["median_s"] == 3.0


def test_errors_are_counted_by_kind_and_model_the_latest_first() -> None:
    clock = Clock()
    recent = Recent(clock)
    recent.add_error("CapacityError", "small")
    recent.add_error("BackendError", "small")
    clock.now += 5
    recent.add_error("CapacityError", "small")
    clock.now += 2
    assert recent.to_dict()["errors"] == [
        {"kind": "CapacityError", "model": "small", "count": 2, "age_s": 2},
        {"kind": "BackendError", "model": "small", "count": 1, "age_s": 7},
    ]


def test_errors_stay_bounded_whatever_their_kinds() -> None:
    recent = Recent(Clock())
    for number in range(3 * MOST_ERROR_KINDS):
        recent.add_error(f"Kind{number}", "")
    kinds = [error["kind"] for error in recent.to_dict()["errors"]]
    assert kinds[0] == f"Kind{3 * MOST_ERROR_KINDS - 1}"
    assert len(kinds) == MOST_ERROR_KINDS


def test_samples_are_bounded_and_a_reader_gets_only_new_ones() -> None:
    recent = Recent(Clock())
    for number in range(MOST_SAMPLES + 7):
        recent.add_sample([Stats(model="small", state="ready", num_running=number)])
    found = recent.to_dict()
    assert found["next"] == MOST_SAMPLES + 7
    assert [sample["number"] for sample in found["samples"]] == list(range(7, MOST_SAMPLES + 7))
    (newest,) = recent.to_dict(since=MOST_SAMPLES + 6)["samples"]
    assert newest["levels"]["small"]["num_running"] == MOST_SAMPLES + 6
    assert recent.to_dict(since=found["next"])["samples"] == []


def test_a_reader_from_before_a_restart_gets_all_samples() -> None:
    recent = Recent(Clock())
    recent.add_sample([Stats(model="small", state="ready")])
    assert len(recent.to_dict(since=900)["samples"]) == 1


def test_a_sample_has_the_median_wait_of_its_moment() -> None:
    recent = Recent(Clock())
    recent.add_first_token("small", 0.25)
    recent.add_sample([Stats(model="small", state="ready")])
    (sample,) = recent.to_dict()["samples"]
    assert sample["levels"]["small"]["first_token_s"] == 0.25
