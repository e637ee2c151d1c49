"""What a run's model can do, as one record: `review.json`, from which the report is drawn.

Compares on the same bytes only: see held_out.py. Knows no pictures. Next: specialization.py,
samples.py, report.py.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from moestro import files, settings
from moestro.data.corpus import Document
from moestro.data.shards import Shards
from moestro.errors import CheckpointError
from moestro.lm.held_out import HeldOut, choose, measure_baselines
from moestro.lm.language_model import LanguageModel
from moestro.lm.report import finite, write_report
from moestro.lm.samples import Sample, choose_passages, complete
from moestro.lm.specialization import Divergence, KnockOut, divergence, knock_out
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.train.evaluate import Evaluation, TokenDocument, evaluate
from moestro.train.metrics import read_metrics
from moestro.train.run import Run

REVIEW_FILE = "review.json"
Say = Callable[[str], None]
# Hears the share that is done.
Hear = Callable[[float], None]
# Often enough for a person to see that a busy machine is at work.
_SAY_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is read: for the headline, for budget curve and knock-out; and how many samples."""

    max_bytes: int = 500_000
    curve_bytes: int = 20_000
    num_budgets: int = 9
    num_samples: int = 3
    sample_tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """What one requested budget gives on unseen text."""

    requested: float
    mean_experts: float
    nats_per_token: float
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class Review:
    """Everything a report shows of a model.

    `domains` are measured at all experts, `thrifty` at `budget`, if the model has one. `baselines`
    read the same bytes as the model, `baselines_of_all` all that were held out.
    """

    held_out_bytes: int
    domains: dict[str, Evaluation]
    budget: float | None = None
    thrifty: dict[str, Evaluation] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    baselines_of_all: dict[str, float] = field(default_factory=dict)
    curve: list[BudgetPoint] = field(default_factory=list)
    divergence: Divergence | None = None
    knock_out: list[KnockOut] | None = None
    samples: list[Sample] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return what `review.json` holds: numbers, texts and lists."""
        return {
            "held_out_bytes": self.held_out_bytes,
            "held_out": _total(self.domains.values()).to_dict(),
            "domains": {name: part.to_dict() for name, part in self.domains.items()},
            "budget": self.budget,
            "at_budget": None
            if self.budget is None
            else {
                "held_out": _total(self.thrifty.values()).to_dict(),
                "domains": {name: part.to_dict() for name, part in self.thrifty.items()},
            },
            "baselines": self.baselines,
            "baselines_of_all": self.baselines_of_all,
            "budget_curve": [vars(point) for point in self.curve],
            "divergence": self.divergence and self.divergence.to_dict(),
            "knock_out": self.knock_out and [each.to_dict() for each in self.knock_out],
            "samples": [sample.to_dict() for sample in self.samples],
        }


def review_run(
    run: Run, model: Transformer, *, limits: Limits | None = None, say: Say | None = None
) -> dict[str, Any]:
    """Review a run's model; write `review.json`, which is returned, and `report.html`."""
    lm = LanguageModel(model, run.tokenizer)
    limits = limits or limits_for(run.config.train.device)
    found = finite(review(lm, run.data, limits=limits, say=say).to_dict())
    files.write_json(run.folder / REVIEW_FILE, found)
    write_report(run.folder, read_metrics(run.folder), found, settings.to_tables(run.config))
    return found


def limits_for(device: str) -> Limits:
    """Return what is read in about a minute on two cores, or on a GPU in less."""
    if device.startswith("cuda"):
        return Limits(max_bytes=20_000_000, curve_bytes=500_000)
    return Limits()


def review(
    lm: LanguageModel, data: Shards, *, limits: Limits = Limits(), say: Say | None = None
) -> Review:
    """Measure a model on held-out text, by domain and by budget, and let it complete some."""
    tell = say or (lambda text: None)
    chosen = choose(data.held_out, limits.max_bytes)
    documents = _encode(lm, chosen)
    stage = _Stage(
        tell, f"evaluating on {chosen.num_bytes:,} of {chosen.total_bytes:,} held-out bytes"
    )
    domains = _evaluate(lm, documents, None, stage)
    few = _encode(lm, choose(data.held_out, limits.curve_bytes))
    budget, thrifty, curve = default_budget(lm.config), {}, []
    if budget is not None:
        thrifty = _evaluate(
            lm, documents, budget, _Stage(tell, f"evaluating at {budget:g} experts per token")
        )
        curve = _measure_curve(
            lm, few, limits.num_budgets, _Stage(tell, "measuring what each budget costs")
        )
    tell("compressing the same bytes with gzip, xz and an n-gram model")
    compressed = measure_baselines(chosen, data, lm.tokenizer)
    return Review(
        held_out_bytes=chosen.total_bytes,
        domains=domains,
        budget=budget,
        thrifty=thrifty,
        baselines=compressed,
        baselines_of_all=dict(data.about.get("baselines") or {}),
        curve=curve,
        divergence=divergence(domains),
        knock_out=knock_out(
            lm.model,
            few,
            domains,
            start_id=lm.tokenizer.bos_id,
            budget=lm.check_experts(budget),
            on_progress=_Stage(tell, "switching off each domain's favorite experts"),
        ),
        samples=_complete(lm, data.held_out, limits, tell),
    )


class _Stage:
    """A part of the review: named as it begins, then how far it is, now and then."""

    def __init__(self, say: Say, name: str) -> None:
        self._say = say
        self._name = name
        self._said_at = time.monotonic()
        say(name)

    def __call__(self, share: float) -> None:
        if time.monotonic() - self._said_at >= _SAY_EVERY_S:
            self._said_at = time.monotonic()
            self._say(f"{self._name}: {share:.0%}")


def _within(hear: Hear, begin: float, size: float) -> Hear:
    """Return who hears of a part of a stage, by the share of that part."""
    return lambda share: hear(begin + size * share)


def default_budget(config: ModelConfig) -> float | None:
    """Return the budget midway between fewest and most experts; None for a model without one."""
    fewest, most = config.fewest_experts, config.num_experts_per_tok
    has_gates = config.first_k_dense_replace < config.num_hidden_layers
    return (fewest + most) / 2 if has_gates and config.has_budget and fewest < most else None


def _complete(
    lm: LanguageModel, documents: Sequence[Document], limits: Limits, tell: Say
) -> list[Sample]:
    tell("completing held-out text")
    # One place for the token that begins a text.
    room = lm.config.max_position_embeddings - limits.sample_tokens - 1
    passages = choose_passages(documents, lm.tokenizer, room, limits.num_samples)
    try:
        return [complete(lm, passage, max_tokens=limits.sample_tokens) for passage in passages]
    except CheckpointError as error:
        # A run that diverged writes nothing, and its review has to say the rest.
        tell(f"no completions: {error}")
        return []


def _encode(lm: LanguageModel, chosen: HeldOut) -> dict[str, list[TokenDocument]]:
    encoded = {}
    for name, part in chosen.domains.items():
        texts = [document.text for document in part]
        pairs = zip(texts, lm.tokenizer.encode_batch(texts), strict=True)
        encoded[name] = [TokenDocument(ids, len(text.encode())) for text, ids in pairs]
    return encoded


def _evaluate(
    lm: LanguageModel,
    documents: Mapping[str, Sequence[TokenDocument]],
    experts: float | None,
    hear: Hear,
) -> dict[str, Evaluation]:
    budget = lm.check_experts(experts)
    start_id = lm.tokenizer.bos_id
    sizes = {name: sum(len(each.tokens) for each in part) for name, part in documents.items()}
    total, done, found = max(1, sum(sizes.values())), 0, {}
    for name, part in documents.items():
        on_progress = _within(hear, done / total, sizes[name] / total)
        found[name] = evaluate(
            lm.model, part, start_id=start_id, budget=budget, on_progress=on_progress
        )
        done += sizes[name]
    return found


def _measure_curve(
    lm: LanguageModel, documents: Mapping[str, Sequence[TokenDocument]], num: int, hear: Hear
) -> list[BudgetPoint]:
    everything = {"": [document for part in documents.values() for document in part]}
    fewest, most = lm.config.fewest_experts, lm.config.num_experts_per_tok
    points = []
    for place, requested in enumerate(np.linspace(fewest, most, num).tolist()):
        found = _evaluate(lm, everything, requested, _within(hear, place / num, 1 / num))[""]
        points.append(
            BudgetPoint(
                requested=requested,
                mean_experts=found.mean_experts or 0.0,
                nats_per_token=found.nats_per_token,
                bits_per_byte=found.bits_per_byte,
            )
        )
    return points


def _total(parts: Iterable[Evaluation]) -> Evaluation:
    return reduce(add, parts)
