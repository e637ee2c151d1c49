"""Which model answers a request, and why: the one it names, or for `auto` what the policy says.

A conversation keeps its model, unless the policy is not trusted any more. While that model cannot
answer another stands in for it, and it is asked again as soon as it can.
Knows policies by what they can do only. Next: asked.py, attempts.py.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from moestro.api.cards import AUTO
from moestro.errors import ConfigError, UnknownModelError
from moestro.gateway.asked import Asked, Kind
from moestro.gateway.fleet import Fleet
from moestro.gateway.shared import Conversations

# What is each model's own: another one's is no use in its place.
_OWN: Mapping[Kind, str] = {
    "embeddings": "embeddings",
    "tokenize": "tokens",
    "detokenize": "tokens",
}


class CascadeRule(Protocol):
    """Whether a small model's answer is kept."""

    @property
    def reads_whole(self) -> bool:
        """Whether it judges the whole text; else the first tokens' log-probabilities."""

    def accepts(self, answer: str, logprobs: Sequence[float]) -> bool:
        """Tell by the text so far and its tokens' log-probabilities."""


class PolicyDecision(Protocol):
    """What a policy says of a request; names are the policy's own."""

    @property
    def model(self) -> str:
        """Who shall answer."""

    @property
    def reason(self) -> str:
        """Why, in a few words."""

    @property
    def scores(self) -> Mapping[str, float]:
        """What each model is expected to score."""

    @property
    def threshold(self) -> float | None:
        """What the scores were compared with."""

    @property
    def digest(self) -> str:
        """A hash of the features."""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Who may answer instead, the best first."""

    @property
    def signs(self) -> Mapping[str, float]:
        """What tells whether requests look as they did when the policy was calibrated."""

    @property
    def cascade(self) -> CascadeRule | None:
        """The rule by which its answer is kept or not."""


class Policy(Protocol):
    """Decides which model answers."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it knows, by its own names."""

    @property
    def strongest(self) -> str:
        """The one that all others are compared with."""

    def decide(self, prompt: str, allowed: Collection[str]) -> PolicyDecision:
        """Choose one of the models allowed."""


class Trust(Protocol):
    """Whether what a policy promises holds on live traffic."""

    @property
    def doubt(self) -> str | None:
        """Why it does not, in a few words; None as long as nothing speaks against it."""

    def note(self, signs: Mapping[str, float]) -> None:
        """Take the signs of a request that was decided; returns at once."""


class Permits(Protocol):
    """Which models a caller may ask."""

    def allowed_models(self, caller: str | None) -> Collection[str] | None:
        """Return them; None allows all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """Who answers: the first of `models`, or if it cannot another, in this order; and why.

    `is_stand_in` says that it answers for a model that cannot be asked now; `is_distrusted` that
    the policy was not asked, because its promise does not hold.
    """

    models: tuple[str, ...]
    reason: str
    is_auto: bool = False
    is_stand_in: bool = False
    is_distrusted: bool = False
    digest: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    signs: Mapping[str, float] = field(default_factory=dict)
    cascade: CascadeRule | None = None


class Chooser:
    """Chooses a model for each request.

    `is_up` tells whether a model can be asked at all now. `trust` and `permits` may be left out.
    """

    def __init__(
        self,
        fleet: Fleet,
        policy: Policy | None,
        conversations: Conversations,
        *,
        is_up: Callable[[str], bool],
        trust: Trust | None = None,
        permits: Permits | None = None,
    ) -> None:
        if policy is not None:
            fleet.check_policy_models(policy.models)
        self._fleet = fleet
        self._policy = policy
        self._conversations = conversations
        self._is_up = is_up
        self._trust = trust
        self._permits = permits
        given = fleet.policy.names if fleet.policy is not None else {}
        names = () if policy is None else policy.models
        # Both ways between the policy's names and the fleet's.
        self._ours = {name: given.get(name, name) for name in names}
        self._theirs = {ours: name for name, ours in self._ours.items()}

    @property
    def strongest(self) -> str | None:
        """The model that others are compared with, None without a policy."""
        return None if self._policy is None else self._ours[self._policy.strongest]

    @property
    def auto_models(self) -> tuple[str, ...]:
        """The models among which `auto` chooses."""
        subset = self._fleet.policy.models if self._fleet.policy is not None else ()
        return tuple(name for name in self._theirs if not subset or name in subset)

    def choose(self, asked: Asked, caller: str | None, *, may_cascade: bool = True) -> ModelChoice:
        """Return who answers; UnknownModelError for a name that is none, or not the caller's.

        Where a small model's answer cannot be looked at before it goes on, `may_cascade` is false.
        """
        allowed = None if self._permits is None else self._permits.allowed_models(caller)
        if asked.model != AUTO:
            return self._choose_named(asked.model, allowed)
        if asked.kind in _OWN:
            raise ConfigError(
                f"{AUTO} chooses among models that talk: name the one whose {_OWN[asked.kind]} you"
                " want"
            )
        if self._policy is None:
            raise ConfigError(
                f"{AUTO} needs a policy, and there is none: name one of"
                f" {', '.join(self._fleet.names)}"
            )
        mine = [name for name in self.auto_models if _may_choose(name, allowed)]
        if not mine:
            choices = ", ".join(sorted(allowed or ())) or "none"
            raise UnknownModelError(
                f"you may use none of the models that {AUTO} chooses among: choose {choices}"
            )
        mine = self._find_roomy(asked, mine)
        doubt = None if self._trust is None else self._trust.doubt
        if doubt is not None and self.strongest in mine:
            return self._choose_strongest(mine, doubt)
        known = self._conversations.find(asked.conversation) if asked.conversation else None
        if known in mine and self._is_up(known):
            others = [name for name in reversed(mine) if name != known]
            return ModelChoice(models=(known, *others), reason="conversation", is_auto=True)
        choice = self._decide(asked, mine, may_cascade=may_cascade)
        return replace(choice, is_stand_in=True) if known in mine else choice

    def may_name(self, name: str, caller: str | None) -> bool:
        """Tell whether a caller may ask for a name: of `auto`, if it has anything to choose."""
        allowed = None if self._permits is None else self._permits.allowed_models(caller)
        if name == AUTO:
            return any(_may_choose(model, allowed) for model in self.auto_models)
        return allowed is None or name in allowed

    def settle(
        self, asked: Asked, choice: ModelChoice, model: str, *, is_stand_in: bool = False
    ) -> None:
        """Remember which model answered, so that the conversation stays with it.

        Not one that answered because another could not: the conversation stays with that one, or
        if it is new is decided anew. Its cheaper model may be back at the next turn.
        Only what was answered counts as traffic: who is refused may ask for the same ever again.
        """
        if self._trust is not None and choice.signs:
            self._trust.note(choice.signs)
        if not (choice.is_auto and asked.conversation):
            return
        is_moved = is_stand_in or choice.is_stand_in
        stays = self._conversations.find(asked.conversation) if is_moved else model
        if stays is not None:
            self._conversations.keep(asked.conversation, stays)

    def _choose_named(self, name: str, allowed: Collection[str] | None) -> ModelChoice:
        if name not in self._fleet.names:
            known = [AUTO] if self._policy is not None else []
            choices = ", ".join([*self._fleet.names, *known])
            raise UnknownModelError(f"model {name[:100]!r} is not served here: choose {choices}")
        if allowed is not None and name not in allowed:
            choices = ", ".join(sorted(allowed)) or "none"
            raise UnknownModelError(f"model {name!r} is not yours to use: choose {choices}")
        return ModelChoice(models=(name,), reason="named")

    def _find_roomy(self, asked: Asked, mine: list[str]) -> list[str]:
        num_prompt, num_answer = asked.fewest_tokens, asked.answer_limit or 0
        roomy = [name for name in mine if self._fleet.may_hold(name, num_prompt, num_answer)]
        # An estimate refuses nobody: where all seem too small, they say so themselves.
        return roomy or mine

    def _choose_strongest(self, mine: Sequence[str], doubt: str) -> ModelChoice:
        assert self.strongest is not None
        others = [name for name in reversed(mine) if name != self.strongest]
        models = (self.strongest, *others)
        return ModelChoice(models=models, reason=doubt, is_auto=True, is_distrusted=True)

    def _decide(self, asked: Asked, mine: Sequence[str], *, may_cascade: bool) -> ModelChoice:
        assert self._policy is not None
        # Those that cannot answer now are not asked, unless none can.
        up = [name for name in mine if self._is_up(name)] or mine
        decision = self._policy.decide(asked.opening, [self._theirs[name] for name in up])
        wanted = decision
        if len(up) < len(mine):
            wanted = self._policy.decide(asked.opening, [self._theirs[name] for name in mine])
        fallbacks = [self._ours[name] for name in decision.fallbacks]
        rest = [name for name in reversed(mine) if name not in fallbacks]
        model = self._ours[decision.model]
        others = [name for name in (*fallbacks, *rest) if name in mine and name != model]
        cascade, reason = decision.cascade if others else None, decision.reason
        if cascade is not None and not (may_cascade and self._may_cascade(asked, cascade)):
            # The floor was shown for answers that are looked at, not for any of the small model's.
            model, *others = reversed(mine)
            cascade, reason = None, "no cascade here: the strongest"
        return ModelChoice(
            models=(model, *others),
            reason=reason,
            is_auto=True,
            is_stand_in=wanted.model != decision.model,
            digest=decision.digest,
            scores={self._ours[name]: score for name, score in decision.scores.items()},
            threshold=decision.threshold,
            signs=decision.signs,
            cascade=cascade,
        )

    def _may_cascade(self, asked: Asked, rule: CascadeRule) -> bool:
        """Tell whether a small model's answer can be looked at before it goes on."""
        if self._fleet.policy is not None and not self._fleet.policy.cascade:
            return False
        # One answer's tokens speak for all of it, and a call of a tool has no text.
        is_single = asked.number("n") in (None, 1)
        is_seen = asked.is_written and not asked.has("echo")
        return is_single and is_seen and not (rule.reads_whole and asked.has("tools"))


def _may_choose(name: str, allowed: Collection[str] | None) -> bool:
    return allowed is None or AUTO in allowed or name in allowed
