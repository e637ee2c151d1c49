"""The MTP modules run where somebody may use what they guess."""

from typing import Any, cast

import torch
from torch import Tensor

from moestro.engine.answer import Answer
from moestro.engine.batch import Layout
from moestro.engine.config import DraftConfig
from moestro.engine.draft import Drafter
from moestro.engine.request import Sequence, Work
from moestro.engine.runner import Runner
from moestro.text.grammar import GrammarFactory, GrammarSpec
from moestro.text.learn import learn
from tests.unit.engine.sequences import build_choices, build_request


class CountingRunner:
    """A model of four tokens with one MTP module; counts how often the module runs."""

    def __init__(self) -> None:
        self.num_runs = 0
        self.mtp = [None]
        self.model = self

    def look_ahead(self, _batch: object, hidden_TD: Tensor, *_: object) -> Tensor:
        self.num_runs += 1
        return hidden_TD

    def logits(self, _hidden_TD: Tensor, rows: list[int]) -> Tensor:
        return torch.zeros(len(rows), 4)


def draft_behind(answers: list[Answer], *, has_prompts: bool) -> int:
    """Run the modules behind a step of these answers; return how often they ran."""
    runner = CountingRunner()
    drafter = Drafter(cast("Runner", runner), DraftConfig(mode="always"))
    works = [Work(sequence=answer.sequence, start=0, end=3) for answer in answers]
    layout = Layout(block_size=4, scratch_slot=0, row_multiple=1, most_experts=4)
    batch = layout.gather(works)
    for answer in answers:
        answer.sequence.num_computed = 3
        answer.sequence.tokens.append(1)
    drafter.run(
        batch, torch.zeros(batch.num_tokens, 2), {a.sequence: a for a in answers}, has_prompts
    )
    return runner.num_runs


def build_answer(grammar: Any = None) -> Answer:
    [sequence] = build_choices(build_request([1, 2, 3]))
    sequence.blocks = [0]
    return Answer(sequence, grammar)


def guided_answer() -> Answer:
    factory = GrammarFactory(learn(["some text to learn from"] * 3, vocab_size=300))
    return build_answer(factory.compile(GrammarSpec(kind="regex", source="a*")))


def drafts(answer: Answer) -> list[int]:
    sequence: Sequence = answer.sequence
    return sequence.drafts


def test_answers_that_follow_grammars_cost_no_drafting() -> None:
    guided = guided_answer()
    assert draft_behind([guided], has_prompts=False) == 0
    assert drafts(guided) == []


def test_an_answer_without_a_grammar_gets_its_draft_beside_one_with_one() -> None:
    guided, free = guided_answer(), build_answer()
    assert draft_behind([guided, free], has_prompts=False) == 1
    assert (len(drafts(guided)), len(drafts(free))) == (0, 1)


def test_prompts_go_through_the_modules_whoever_asks() -> None:
    assert draft_behind([guided_answer()], has_prompts=True) == 1


def test_no_draft_is_made_behind_a_burst_whose_last_pick_failed() -> None:
    answer, runner = build_answer(), CountingRunner()
    drafter = Drafter(cast("Runner", runner), DraftConfig(mode="always"))
    sequence = answer.sequence
    sequence.num_computed = 2
    work = Work(sequence=sequence, start=2, end=3)
    layout = Layout(block_size=4, scratch_slot=0, row_multiple=1, most_experts=4)
    work.repeat(2)
    batch = layout.gather([work])
    # The first pick stands, and the second, whose row the batch has, does not.
    sequence.tokens.append(1)
    sequence.num_computed = 3
    drafter.run(batch, torch.zeros(1, 2), {sequence: answer}, has_prompts=False)
    assert drafts(answer) == []
