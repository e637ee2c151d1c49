"""Random traffic through scheduler and blocks: everyone ends, nothing is lost or shared wrongly.

The paper engine of sequences.py checks limits, accounts, contents and order in every step.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moestro.engine.blocks import BlockPool
from moestro.engine.config import EngineConfig
from moestro.engine.request import Sequence
from tests.unit.engine.sequences import PaperEngine

SIZE = 4


class Traffic(RuleBasedStateMachine):
    """Random requests, steps and aborts on a tiny cache."""

    def __init__(self) -> None:
        super().__init__()
        config = EngineConfig(max_batch=4, max_batch_tokens=10)
        self.engine = PaperEngine(config, BlockPool(9, SIZE), self.grant)
        self.level = 4.0

    def grant(self, sequence: Sequence) -> None:
        assert sequence.leader is None
        assert not sequence.has_started
        if sequence.request.experts == "auto":
            sequence.experts = self.level

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=12),
        max_tokens=st.integers(0, 24),
        num_choices=st.integers(1, 3),
        experts=st.sampled_from([None, None, 2.0, "auto"]),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        scores_prompt=st.booleans(),
    )
    def submit(self, prompt: list[int], **changes: Any) -> None:
        self.engine.submit(prompt, **changes)

    @rule(max_prefill_tokens=st.integers(0, 12), num_steps=st.integers(1, 8))
    def step(self, max_prefill_tokens: int, num_steps: int) -> None:
        for _ in range(num_steps):
            self.engine.step(max_prefill_tokens)

    @precondition(lambda self: self.engine.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.engine.abort(data.draw(st.sampled_from(self.engine.live)).request.id)

    @rule(level=st.sampled_from([2.0, 4.0]))
    def load_changes(self, level: float) -> None:
        self.level = level

    @invariant()
    def all_choices_have_one_budget(self) -> None:
        started = [each for each in self.engine.live if each.has_started and each.leader]
        assert all(each.leader and each.experts == each.leader.experts for each in started)

    def teardown(self) -> None:
        num_tokens = sum(each.num_pending + each.request.max_tokens for each in self.engine.live)
        # Each token in a step of its own, and as much again for those that had to start anew.
        self.engine.drain(2 * num_tokens)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=30)
