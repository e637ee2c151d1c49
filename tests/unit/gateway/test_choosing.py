"""Who answers, and why: names, `auto`, conversations, floors, what a caller may use."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from moestro.api.cards import ModelCard
from moestro.api.relay import Call
from moestro.errors import ConfigError, UnknownModelError
from moestro.gateway.asked import read_call
from moestro.gateway.choosing import Chooser, ModelChoice
from moestro.gateway.fleet import BackendConfig, Fleet, FleetModel, LocalServer, PolicyConfig
from moestro.gateway.shared import RecentConversations


@dataclass
class ScriptedDecision:
    model: str
    reason: str = "gain 0.1 < 0.2"
    scores: dict[str, float] = field(default_factory=dict)
    threshold: float | None = 0.2
    digest: str = "d"
    fallbacks: tuple[str, ...] = ("strong",)
    signs: dict[str, float] = field(default_factory=lambda: {"gain": 0.1})
    cascade: Any = None


@dataclass
class ScriptedPolicy:
    """Chooses the strongest for what says "hard", else the first allowed."""

    models: tuple[str, ...] = ("weak", "strong")
    strongest: str = "strong"
    prompts: list[str] = field(default_factory=list)
    cascade: Any = None

    def decide(self, prompt: str, allowed: Collection[str]) -> ScriptedDecision:
        self.prompts.append(prompt)
        model = "strong" if "hard" in prompt and "strong" in allowed else sorted(allowed)[-1]
        others = tuple(name for name in allowed if name != model)
        return ScriptedDecision(model, fallbacks=others, scores={model: 0.5}, cascade=self.cascade)


@dataclass
class ScriptedTrust:
    doubt: str | None = None
    noted: list[Mapping[str, float]] = field(default_factory=list)

    def note(self, signs: Mapping[str, float]) -> None:
        self.noted.append(signs)


@dataclass
class ScriptedPermits:
    models: Collection[str] | None = None

    def allowed_models(self, caller: str | None) -> Collection[str] | None:
        return self.models


def fleet(**policy: Any) -> Fleet:
    backends = (BackendConfig(url="http://127.0.0.1:1/v1"),)
    lengths = policy.pop("lengths", {})
    models = tuple(
        FleetModel(name=name, backends=backends, context_length=lengths.get(name, 0))
        for name in ("a", "weak", "strong")
    )
    return Fleet(models=models, policy=PolicyConfig(path="p", **policy))  # type: ignore[arg-type]


class World:
    def __init__(self, **given: Any) -> None:
        self.now = 0.0
        self.down: set[str] = set()
        self.policy = given.pop("policy", ScriptedPolicy())
        self.trust = ScriptedTrust()
        self.permits = ScriptedPermits()
        self.chooser = Chooser(
            given.pop("fleet", fleet()),
            self.policy,
            RecentConversations(10, lambda: self.now),
            is_up=lambda model: model not in self.down,
            trust=self.trust,
            permits=self.permits,
        )

    def ask(
        self,
        *texts: str,
        model: str = "auto",
        settle: bool = True,
        answered_by: str | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> ModelChoice:
        roles = ["user", "assistant"] * len(texts)
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        body = json.dumps({"model": model, "messages": turns} | fields).encode()
        call = Call(path="/v1/chat/completions", body=body, request_id="r", headers=headers or {})
        asked = read_call(call)
        choice = self.chooser.choose(asked, None)
        if settle:
            self.chooser.settle(asked, choice, answered_by or choice.models[0])
        return choice


def test_a_name_is_that_model_and_no_other() -> None:
    choice = World().ask("hi", model="a")
    assert (choice.models, choice.reason, choice.is_auto) == (("a",), "named", False)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(UnknownModelError, match="choose a, weak, strong, auto"):
        World().ask("hi", model="x")
    with pytest.raises(UnknownModelError, match=r"choose a, weak, strong$"):
        World(policy=None).ask("hi", model="x")


def test_auto_asks_the_policy_and_keeps_the_others_in_reserve() -> None:
    choice = World().ask("easy")
    assert choice.models == ("weak", "strong")
    assert (choice.reason, choice.digest, choice.threshold) == ("gain 0.1 < 0.2", "d", 0.2)
    assert choice.scores == {"weak": 0.5}


def test_auto_without_a_policy_says_what_to_name() -> None:
    with pytest.raises(ConfigError, match="auto needs a policy"):
        World(policy=None).ask("hi")


def test_a_conversation_stays_with_its_model_for_a_while() -> None:
    world = World()
    assert world.ask("easy").models[0] == "weak"
    choice = world.ask("easy", "yes", "now a hard one")
    assert (choice.models[0], choice.reason) == ("weak", "conversation")
    world.now = 11
    assert world.ask("easy", "yes", "now a hard one").reason != "conversation"


def test_a_conversation_that_another_worker_began_gets_the_same_model() -> None:
    assert World().ask("easy", "yes", "now a hard one").models[0] == "weak"
    assert World().ask("hard", "yes", "now an easy one").models[0] == "strong"


def test_a_conversation_leaves_a_model_that_does_not_answer() -> None:
    world = World()
    world.ask("easy")
    world.down = {"weak"}
    assert world.ask("easy", "yes", "more").models == ("strong", "weak")


def test_a_conversation_goes_back_as_soon_as_its_model_answers_again() -> None:
    world = World()
    world.ask("easy")
    world.down = {"weak"}
    for now in (5, 10, 15):
        world.now = now
        assert world.ask("easy", "yes", "more").models[0] == "strong"
    world.down = set()
    choice = world.ask("easy", "yes", "more", "yes", "now a hard one")
    assert (choice.models[0], choice.reason) == ("weak", "conversation")


def test_a_conversation_begun_while_the_model_that_it_needs_was_away_is_decided_anew() -> None:
    world = World()
    world.down = {"weak"}
    assert world.ask("easy").models[0] == "strong"
    assert world.ask("easy", "yes", "more").models[0] == "strong"
    world.down = set()
    choice = world.ask("easy", "yes", "more", "yes", "even more")
    assert (choice.models[0], choice.reason) == ("weak", "gain 0.1 < 0.2")


def test_a_model_that_is_away_moves_no_conversation_that_does_not_need_it() -> None:
    world = World()
    name = {"x-moestro-conversation": "c"}
    world.down = {"weak"}
    assert world.ask("hard", headers=name).models[0] == "strong"
    world.down = set()
    choice = world.ask("easy", headers=name)
    assert (choice.models[0], choice.reason) == ("strong", "conversation")


def test_a_conversation_that_was_escalated_for_good_stays_there() -> None:
    world = World()
    world.ask("easy", answered_by="strong")
    choice = world.ask("easy", "yes", "more")
    assert (choice.models[0], choice.reason) == ("strong", "conversation")


def test_a_named_conversation_is_told_apart_from_one_that_begins_alike() -> None:
    world = World()
    body = {"model": "auto", "messages": [{"role": "user", "content": "easy"}]}
    hashes = {
        read_call(
            Call(
                path="/v1/chat/completions",
                body=json.dumps(body | fields).encode(),
                request_id="r",
                headers=headers,
                caller=caller,
            )
        ).conversation
        for fields, headers, caller in [
            ({}, {}, None),
            ({"user": "u"}, {}, None),
            ({}, {"x-moestro-conversation": "c"}, None),
            ({}, {}, "somebody"),
        ]
    }
    assert len(hashes) == 4
    assert world.ask("easy")


def test_a_lost_floor_is_the_strongest_for_everybody() -> None:
    world = World()
    world.ask("easy")
    world.trust.doubt = "floor lost"
    choice = world.ask("easy", "yes", "more")
    assert (choice.models, choice.reason) == (("strong", "weak"), "floor lost")
    assert choice.is_distrusted


def test_only_answered_requests_that_the_policy_decided_count_as_traffic() -> None:
    world = World()
    world.ask("easy", settle=False)
    world.ask("hi", model="a")
    assert world.trust.noted == []
    world.ask("easy")
    world.ask("easy", "yes", "more")
    assert world.trust.noted == [{"gain": 0.1}]
    world.trust.doubt = "floor lost"
    world.ask("another one")
    assert len(world.trust.noted) == 1


def test_a_caller_gets_only_its_models() -> None:
    world = World()
    world.permits.models = ["weak"]
    assert world.ask("hard").models == ("weak",)
    with pytest.raises(UnknownModelError, match="is not yours to use: choose weak"):
        world.ask("hi", model="strong")
    world.permits.models = ["a"]
    with pytest.raises(UnknownModelError, match=r"none of the models that auto .*: choose a$"):
        world.ask("hi")


def test_a_caller_of_auto_gets_all_that_auto_has_and_no_name() -> None:
    world = World()
    world.permits.models = ["auto"]
    assert world.ask("easy").models == ("weak", "strong")
    with pytest.raises(UnknownModelError, match="is not yours to use: choose auto"):
        world.ask("hi", model="strong")


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        (None, ["a", "weak", "strong", "auto"]),
        (["auto"], ["auto"]),
        (["weak"], ["weak", "auto"]),
        (["a"], ["a"]),
        ([], []),
    ],
)
def test_a_caller_may_name_what_would_be_answered(allowed: Any, names: list[str]) -> None:
    world = World()
    world.permits.models = allowed
    known = ["a", "weak", "strong", "auto"]
    assert [name for name in known if world.chooser.may_name(name, "alice")] == names


def test_the_policys_names_may_be_others_than_the_fleets() -> None:
    policy = ScriptedPolicy(models=("w", "strong"))
    world = World(policy=policy, fleet=fleet(names={"w": "weak"}))
    assert world.ask("easy").models == ("weak", "strong")
    assert world.chooser.auto_models == ("weak", "strong")


def test_a_policy_with_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not in the fleet"):
        World(policy=ScriptedPolicy(models=("w", "strong")))


def test_a_subset_is_all_that_auto_uses() -> None:
    world = World(fleet=fleet(models=("strong",)))
    assert world.ask("easy").models == ("strong",)


def test_a_short_question_is_judged_with_what_came_before_it() -> None:
    world = World()
    world.ask("x" * 300, settle=False)
    system = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why"}]
    world.ask(messages=system, settle=False)
    parts = [{"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image"}]}]
    world.ask(messages=parts, settle=False)
    assert world.policy.prompts == ["x" * 300, "be brief\nwhy", "part"]


def test_what_is_clearly_too_long_for_a_model_goes_to_another() -> None:
    world = World(fleet=fleet(lengths={"weak": 100, "strong": 1000}))
    assert world.ask("easy", max_tokens=99).models == ("weak", "strong")
    assert world.ask("word " * 200).models == ("strong",)
    assert world.ask("another", max_tokens=101).models == ("strong",)
    # A conversation that has grown leaves its model too.
    assert world.ask("easy", "yes " * 200, "more").models == ("strong",)


def test_what_seems_too_long_for_all_models_is_put_to_them() -> None:
    world = World(fleet=fleet(lengths={"weak": 10, "strong": 10}))
    assert world.ask("easy " * 100).models == ("weak", "strong")


def test_a_local_model_shortens_the_answer_but_not_the_prompt() -> None:
    card = ModelCard(id="weak", created=0, context_length=100)
    local = {"weak": LocalServer(url="http://127.0.0.1:1/v1", card=card)}
    world = World(fleet=fleet().with_local(local))
    assert world.ask("easy", max_tokens=5000).models == ("weak", "strong")
    assert world.ask("word " * 200).models == ("strong",)


def test_no_cascade_here_is_the_strongest_that_is_allowed() -> None:
    world = World(policy=ScriptedPolicy(models=("weak", "a", "strong"), cascade=object()))
    world.permits.models = ["weak", "a"]
    assert world.ask("easy", n=2).models == ("a", "weak")
