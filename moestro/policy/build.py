"""Outcomes become a policy: for a pair or a pool, and one more model joins a pool.

Knows what a policy needs, not where outcomes come from. Next: report.py.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError, DataError
from moestro.policy.features import read
from moestro.policy.learn import MIN_ROWS, LearnConfig, learn
from moestro.policy.measures import Ranking
from moestro.policy.outcomes import Outcomes
from moestro.policy.policy import Policy, PolicyKind
from moestro.policy.prices import Price
from moestro.policy.seen import SeenPrompts
from moestro.policy.trade import pair_curve, pool_curve
from moestro.policy.verify import learn_verifier

Floats = NDArray[np.float64]

MIN_JOIN_ROWS = 10
# How strongly a new model's mixture is held to the average of the others, in prompts.
_JOIN_STRENGTH = 100.0
# How many standard errors of its mean a new model is taken to be worse than it looked: what is
# chosen for looking best was lucky more often than not.
_JOIN_MARGIN = 2.5
# The share of the strong model's score at which two ways to choose are compared: the usual floor.
_KEPT = 0.95


def build_pair(
    outcomes: Outcomes,
    weak: str,
    strong: str,
    prices: Mapping[str, Price],
    config: LearnConfig | None = None,
) -> Policy:
    """Learn when `strong` is worth its price over `weak`."""
    if weak == strong:
        raise ConfigError(f"--weak and --strong are both {weak}: name two models")
    outcomes = outcomes.of([weak, strong])
    weak_mean, strong_mean = outcomes.scores_NM.mean(0)
    if np.array_equal(outcomes.scores_NM[:, 0], outcomes.scores_NM[:, 1]):
        raise DataError(
            f"{weak} and {strong} score the same in every row: there is no gain to learn"
        )
    if strong_mean <= weak_mean:
        raise DataError(
            f"{strong} scores {strong_mean:.3f}, no more than {weak} with {weak_mean:.3f}: swap "
            "--weak and --strong, or fit a pool of both"
        )
    return _build("pair", outcomes, prices, config or LearnConfig())


def build_pool(
    outcomes: Outcomes, prices: Mapping[str, Price], config: LearnConfig | None = None
) -> Policy:
    """Learn what every model scores; the one with the highest mean becomes the strongest."""
    if len(outcomes.models) < 2:
        raise DataError(
            f"the outcomes score one model only, {outcomes.models[0]}: a policy needs at least two"
        )
    if np.all(outcomes.scores_NM == outcomes.scores_NM[:, :1]):
        raise DataError("all models score the same in every row: there is nothing to learn")
    means_M = outcomes.scores_NM.mean(0)
    order = sorted(range(len(means_M)), key=lambda place: means_M[place])
    outcomes = outcomes.of([outcomes.models[place] for place in order])
    return _build("pool", outcomes, prices, config or LearnConfig())


def join(policy: Policy, outcomes: Outcomes, model: str, price: Price | None) -> Policy:
    """Add a model to a pool from a few scored prompts, without learning the others again.

    Its estimate is a mixture of theirs and a constant: how hard a prompt is is shared, and what is
    new is how the model answers to it. So few prompts cannot tell much more, hence the constant
    leans low: a model gets requests where it is better even then.
    """
    if policy.kind != "pool":
        raise ConfigError("a pair takes no third model: fit a pool")
    if model in policy.models:
        raise ConfigError(f"{model} is in the policy already: it knows {', '.join(policy.models)}")
    scores_N = outcomes.of([model]).scores_NM[:, 0]
    if len(scores_N) < MIN_JOIN_ROWS:
        raise DataError(
            f"{len(scores_N)} scored prompts cannot place {model}: give at least {MIN_JOIN_ROWS}"
        )
    known_NM = np.array([policy.estimator.estimate(read(p)) for p in outcomes.prompts])
    mixture_M, bias = _mix(known_NM, scores_N)
    estimator = policy.estimator.with_head(mixture_M.astype(np.float32), bias)
    places = [*range(len(policy.models))]
    strongest_mean = float(known_NM[:, -1].mean())
    # The strongest stays last; the newcomer takes its place only if it was better on these rows.
    is_stronger = float(scores_N.mean()) > strongest_mean
    new = len(policy.models)
    places = [*places, new] if is_stronger else [*places[:-1], new, places[-1]]
    names = [*policy.models, model]
    return replace(
        policy,
        models=tuple(names[place] for place in places),
        estimator=estimator.of(places),
        prices={**policy.prices, **({} if price is None else {model: price})},
        seen=policy.seen.with_more(outcomes.prompts),
        # What was promised, was promised for other models.
        threshold=None,
        evidence={},
        curve=(),
    )


def _build(
    kind: PolicyKind, outcomes: Outcomes, prices: Mapping[str, Price], config: LearnConfig
) -> Policy:
    num_rows = len(outcomes.prompts)
    if num_rows < MIN_ROWS:
        raise DataError(f"{num_rows} rows are too few to learn from: give at least {MIN_ROWS}")
    learned = learn([read(prompt) for prompt in outcomes.prompts], outcomes.scores_NM, config)
    policy = Policy(
        kind=kind,
        models=outcomes.models,
        estimator=learned.estimator,
        prices=_known_prices(outcomes, prices),
        seen=SeenPrompts().with_more(outcomes.prompts),
        training={
            "num_rows": num_rows,
            "strength": learned.strength,
            "mean_scores": dict(
                zip(outcomes.models, map(float, outcomes.scores_NM.mean(0)), strict=True)
            ),
        },
    )
    costs_NM = request_costs(policy, outcomes)
    if kind == "pool":
        curve = pool_curve(learned.unseen_NM, outcomes.scores_NM, costs_NM)
        return replace(policy, curve=[point.to_dict() for point in curve])
    gains_N = learned.unseen_NM[:, 1] - learned.unseen_NM[:, 0]
    answers = outcomes.answers_of(outcomes.models[0])
    verified = None
    if answers is not None:
        verified = learn_verifier(outcomes.prompts, answers, learned.unseen_NM, outcomes.scores_NM)
    if verified is not None and not _is_cheaper(verified.unseen_N, gains_N, outcomes, costs_NM):
        verified = None
    if verified is not None:
        gains_N = verified.unseen_N
        # The weak model is asked every time.
        costs_NM = costs_NM + np.array([0.0, 1.0]) * costs_NM[:, :1]
        policy = replace(policy, verifier=verified.verifier)
    curve = pair_curve(gains_N, outcomes.scores_NM, costs_NM)
    training = {**policy.training, "has_verifier": verified is not None}
    return replace(policy, curve=[point.to_dict() for point in curve], training=training)


def _is_cheaper(checked_N: Floats, gains_N: Floats, outcomes: Outcomes, costs_NM: Floats) -> bool:
    """Tell whether asking the weak model every time costs less than choosing by the prompt.

    Compared where both keep _KEPT of the strong model's score; without prices strong calls count.
    """
    weak_N, strong_N = outcomes.scores_NM.T
    weak_usd, strong_usd = costs_NM.mean(0) if costs_NM.any() else (0.0, 1.0)
    checked, chosen = (
        Ranking(signal_N, weak_N, strong_N).curve().share_for_quality(_KEPT)
        for signal_N in (checked_N, gains_N)
    )
    return bool(weak_usd + checked * strong_usd < (1 - chosen) * weak_usd + chosen * strong_usd)


def request_costs(policy: Policy, outcomes: Outcomes) -> Floats:
    """Return what every request costs with every model: recorded, or by the policy's prices."""
    guessed_NM = np.array([policy.costs_usd(len(prompt)) for prompt in outcomes.prompts])
    recorded_NM = outcomes.of(policy.models).costs_NM
    return np.where(np.isnan(recorded_NM), guessed_NM, recorded_NM)


def _known_prices(outcomes: Outcomes, prices: Mapping[str, Price]) -> dict[str, Price]:
    """Keep the prices of these models; where only costs were recorded, take their mean."""
    known = {}
    for place, name in enumerate(outcomes.models):
        costs_N = outcomes.costs_NM[:, place]
        recorded_N = costs_N[~np.isnan(costs_N)]
        if name in prices:
            known[name] = prices[name]
        elif len(recorded_N):
            known[name] = Price(usd_per_request=float(recorded_N.mean()))
    return known


def _mix(known_NM: Floats, scores_N: Floats) -> tuple[Floats, float]:
    """Regress a model's scores on estimates of the others, held to an even one, less a margin."""
    center_M, mean = known_NM.mean(0), float(scores_N.mean())
    num_models = known_NM.shape[1]
    even_M = np.full(num_models, 1.0 / num_models)
    inputs_NM = known_NM - center_M
    rest_N = scores_N - mean - inputs_NM @ even_M
    scale = _JOIN_STRENGTH * float(inputs_NM.var(0).mean()) + 1e-9
    gram_MM = inputs_NM.T @ inputs_NM + scale * np.eye(num_models)
    mixture_M = even_M + np.linalg.solve(gram_MM, inputs_NM.T @ rest_N)
    wrong_N = scores_N - mean - inputs_NM @ mixture_M
    margin = _JOIN_MARGIN * float(wrong_N.std()) / math.sqrt(len(scores_N))
    return mixture_M, mean - margin - float(center_M @ mixture_M)
