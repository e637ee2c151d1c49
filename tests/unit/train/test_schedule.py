"""The learning rate rises, holds or bends, and ends where it was told to."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.train.config import ScheduleConfig
from moestro.train.schedule import learning_rate_scale


def scales(num_steps: int, config: ScheduleConfig) -> list[float]:
    return [learning_rate_scale(step, num_steps, config) for step in range(num_steps)]


def test_warm_up_stable_decay_has_its_three_parts() -> None:
    config = ScheduleConfig(kind="wsd", warmup_share=0.1, decay_share=0.5, final_ratio=0.1)
    rates = scales(100, config)
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(rates[10:51]) == {1.0}
    falls = [before - after for before, after in pairwise(rates[50:])]
    assert falls == pytest.approx([0.9 / 50] * 49)
    assert rates[-1] == pytest.approx(0.1 + 0.9 / 50)


def test_cosine_falls_from_one_to_the_final_ratio() -> None:
    config = ScheduleConfig(kind="cosine", warmup_share=0.1, final_ratio=0.2)
    rates = scales(100, config)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.6, abs=1e-6)
    assert rates[-1] == pytest.approx(0.2, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@given(
    kind=st.sampled_from(["wsd", "cosine"]),
    num_steps=st.integers(1, 300),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    final=st.floats(0, 1),
)
def test_every_rate_lies_above_zero_and_at_most_at_one(
    kind: str, num_steps: int, warmup: float, decay: float, final: float
) -> None:
    config = ScheduleConfig(
        kind=kind,  # type: ignore[arg-type]
        warmup_share=warmup,
        decay_share=decay,
        final_ratio=final,
    )
    rates = scales(num_steps, config)
    assert all(0 < rate <= 1 + 1e-12 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
