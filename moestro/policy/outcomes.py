"""Outcomes: prompts, and how well each model answered them.

Knows values, not what is learned from them. Next: outcome_files.py, features.py.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """N prompts and the scores, 0 to 1, of M models; costs where they were recorded, else nan.

    `groups_N` says which file a row is from. `logprobs_NM` are mean log-probabilities of answers'
    first tokens (see cascade.py), nan where they were not recorded; `answers_NM` are the answers'
    texts, None where they were not.
    """

    prompts: tuple[str, ...]
    models: tuple[str, ...]
    scores_NM: Floats
    costs_NM: Floats
    groups_N: NDArray[np.int64]
    logprobs_NM: Floats
    answers_NM: NDArray[np.object_]

    def of(self, models: Sequence[str]) -> "Outcomes":
        """Return these models' columns, in this order; an unknown name raises ConfigError."""
        check_known(models, self.models)
        places = [self.models.index(name) for name in models]
        return replace(
            self,
            models=tuple(models),
            scores_NM=self.scores_NM[:, places],
            costs_NM=self.costs_NM[:, places],
            logprobs_NM=self.logprobs_NM[:, places],
            answers_NM=self.answers_NM[:, places],
        )

    def rows(self, places: NDArray[Any]) -> "Outcomes":
        """Return these rows."""
        return Outcomes(
            tuple(self.prompts[place] for place in places),
            self.models,
            self.scores_NM[places],
            self.costs_NM[places],
            self.groups_N[places],
            self.logprobs_NM[places],
            self.answers_NM[places],
        )

    def answers_of(self, model: str) -> tuple[str, ...] | None:
        """Return what a model answered, None if it was not recorded in every row."""
        answers = tuple(self.answers_NM[:, self.models.index(model)])
        return None if any(answer is None for answer in answers) else answers


def check_known(models: Collection[str], known: Collection[str]) -> None:
    """Raise ConfigError for a name that is none of the models known."""
    for name in models:
        if name not in known:
            raise ConfigError(
                f"{name}: no such model in the outcomes: they have {', '.join(known)}"
            )
