"""Places go to those whose turn it is, as if all that wait were looked at."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from moestro.engine.request import Sequence
from moestro.engine.waiting import Waiting, rank
from tests.unit.engine.sequences import build_choices, build_request

# Priority, turn and arrival: few values, so that many rank alike.
few = st.tuples(st.integers(-1, 1), st.integers(0, 2), st.integers(0, 3))


def build(wishes: list[tuple[int, int, int]]) -> list[Sequence]:
    return [
        build_choices(build_request([1], priority=priority, turn=turn), arrival)[0]
        for priority, turn, arrival in wishes
    ]


def choose(sequences: list[Sequence], num_places: int, num_further: int) -> list[Sequence]:
    chosen: list[Sequence] = []
    for each in sorted(sequences, key=lambda each: (*rank(each), each.is_further)):
        num_chosen = sum(other.is_further for other in chosen)
        if len(chosen) < num_places and (not each.is_further or num_chosen < num_further):
            chosen.append(each)
    return chosen


# Places that are few beside those who wait, and none for further answers now and then.
@settings(max_examples=200)
@given(
    wishes=st.lists(few, max_size=16),
    share_gone=st.sampled_from([0.0, 0.3]),
    num_places=st.integers(0, 8),
    num_further=st.integers(-1, 4),
)
def test_the_best_are_those_that_a_look_at_all_would_choose(
    wishes: list[tuple[int, int, int]], share_gone: float, num_places: int, num_further: int
) -> None:
    waiting, sequences = Waiting(), build(wishes)
    for each in sequences:
        waiting.add(each)
    gone = random.Random(0).sample(sequences, int(share_gone * len(sequences)))
    for each in gone:
        waiting.remove(each)
    left = [each for each in sequences if each not in gone]
    assert len(waiting) == len(left)
    assert set(waiting) == set(left)
    assert list(waiting.best(num_places, num_further)) == choose(left, num_places, num_further)
