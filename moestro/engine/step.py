"""One step of an engine: what it was made of, and what came of it. Next: engine.py."""

from dataclasses import dataclass

from torch import Tensor

from moestro.engine.batch import Batch
from moestro.engine.runner import Gates
from moestro.engine.sampler import Outcome


@dataclass(frozen=True)
class StepMix:
    """What a step's tokens are: of prompts, of answers, and whether guesses stand behind those.

    `has_forced`: some of the guesses are no guesses, because a grammar forces them.
    """

    num_prompt_tokens: int
    num_decode_tokens: int
    has_guesses: bool
    has_forced: bool

    @classmethod
    def of(cls, batch: Batch, has_forced: bool) -> "StepMix":
        """Count a batch's tokens."""
        num_prompt = sum(work.num_tokens for work in batch.works if not work.is_decode)
        num_decode = batch.num_tokens - num_prompt
        has_guesses = num_decode > len(batch.works)
        return cls(num_prompt, num_decode, has_guesses, has_guesses and has_forced)


@dataclass(frozen=True)
class StepOutput:
    """What a step came to, work by work; of a burst, the states are its last pass's."""

    batch: Batch
    outcomes: list[list[Outcome]]
    hidden_TD: Tensor
    gates: Gates | None
    num_steps: int = 1
    is_burst: bool = False


@dataclass(frozen=True)
class UndraftedStep:
    """A step that was run and whose drafts are still to come; `seconds` are without them."""

    output: StepOutput
    mix: StepMix
    seconds: float
