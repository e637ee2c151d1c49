"""Do domains use different experts, and does it hurt a domain to lose its own?

Works on evaluations and token ids. Knows no text and no pictures. Next: review.py,
train/evaluate.py.

Shapes: N domains, L MoE layers, E experts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.train.evaluate import Evaluation, TokenDocument, evaluate

Floats = NDArray[np.float64]
Documents = Mapping[str, Sequence[TokenDocument]]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Jensen-Shannon divergence between domains' loads, in bits: 0 is the same, 1 none shared."""

    domains: list[str]
    layers_LNN: Floats

    @property
    def mean_NN(self) -> Floats:
        """The mean over layers."""
        return self.layers_LNN.mean(axis=0)

    def to_dict(self) -> dict[str, object]:
        """Return it as plain lists."""
        return {
            "domains": self.domains,
            "mean": self.mean_NN.tolist(),
            "by_layer": self.layers_LNN.tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class KnockOut:
    """What it costs every domain, in nats per token, to switch off one domain's favorites."""

    domain: str
    experts: list[int]
    rise: dict[str, float]

    @property
    def own(self) -> float:
        """The rise on the domain's own text."""
        return self.rise[self.domain]

    @property
    def others(self) -> float:
        """The rise on the other domains' text, mean over domains."""
        return float(np.mean([nats for name, nats in self.rise.items() if name != self.domain]))

    @property
    def ratio(self) -> float | None:
        """Own damage over the others'; None where the others lose nothing."""
        return self.own / self.others if self.others > 0 else None

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values."""
        return {
            "domain": self.domain,
            "experts": self.experts,
            "own": self.own,
            "others": self.others,
            "ratio": self.ratio,
            "rise": self.rise,
        }


def divergence(by_domain: Mapping[str, Evaluation]) -> Divergence | None:
    """Compare the expert loads of every pair of domains; None for one domain or a dense model."""
    shares_NLE = _shares(by_domain)
    if len(shares_NLE) < 2 or not shares_NLE.shape[1]:
        return None
    rows = [[_jensen_shannon(p_LE, q_LE) for q_LE in shares_NLE] for p_LE in shares_NLE]
    return Divergence(domains=list(by_domain), layers_LNN=np.moveaxis(np.array(rows), 2, 0))


def favorites(by_domain: Mapping[str, Evaluation], domain: str) -> list[int]:
    """Return, for each MoE layer, the expert that `domain` uses most beyond what the others do.

    A difference and not a ratio: an expert that hardly anyone uses is nobody's favorite.
    """
    shares_NLE = _shares(by_domain)
    own = list(by_domain).index(domain)
    others_LE = np.delete(shares_NLE, own, axis=0).mean(axis=0)
    return (shares_NLE[own] - others_LE).argmax(axis=1).tolist()


def knock_out(
    model: Transformer,
    documents: Documents,
    by_domain: Mapping[str, Evaluation],
    *,
    start_id: int,
    budget: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> list[KnockOut] | None:
    """Switch off each domain's favorites in turn and measure the damage to all domains.

    `by_domain` says who the favorites are, `documents` what is read with and without them. None
    where nothing can be compared: one domain, a dense model, or one whose gates leave no expert
    unchosen. `on_progress` hears the share of readings that is done.
    """
    if divergence(by_domain) is None or not _has_spare_expert(model.config):
        return None
    before = _nats(model, documents, start_id, budget)
    found: list[KnockOut] = []
    for domain in documents:
        if on_progress is not None:
            on_progress((1 + len(found)) / (1 + len(documents)))
        experts = favorites(by_domain, domain)
        with switched_off(model, experts):
            after = _nats(model, documents, start_id, budget)
        rise = {name: after[name] - before[name] for name in documents}
        found.append(KnockOut(domain=domain, experts=experts, rise=rise))
    return found


@contextmanager
def switched_off(model: Transformer, experts: Sequence[int]) -> Iterator[None]:
    """Keep one expert of each MoE layer from being chosen while the block lasts.

    MTP modules stay whole. The gates get other bias tensors for a while: the model's own are never
    written to.
    """
    gates = model.gates()[: len(experts)]
    kept = [gate.e_score_correction_bias for gate in gates]
    try:
        for gate, bias, expert in zip(gates, kept, experts, strict=True):
            # A V2 gate has no bias; zeros choose as none does.
            like = torch.zeros_like(gate.weight[:, 0]) if bias is None else bias
            gate.e_score_correction_bias = (
                like.detach()
                .float()
                .index_fill(0, torch.tensor([expert], device=like.device), -torch.inf)
            )
        yield
    finally:
        for gate, bias in zip(gates, kept, strict=True):
            gate.e_score_correction_bias = bias


def _has_spare_expert(config: ModelConfig) -> bool:
    size = config.n_routed_experts // config.n_group
    return size * config.topk_group > config.num_experts_per_tok


def _nats(
    model: Transformer, documents: Documents, start_id: int, budget: float | None
) -> dict[str, float]:
    return {
        name: evaluate(model, part, start_id=start_id, budget=budget).nats_per_token
        for name, part in documents.items()
    }


def _shares(by_domain: Mapping[str, Evaluation]) -> Floats:
    loads = np.stack([np.asarray(part.load_LE, dtype=np.float64) for part in by_domain.values()])
    shares_NLE: Floats = loads / np.maximum(loads.sum(axis=-1, keepdims=True), 1.0)
    return shares_NLE


def _jensen_shannon(p_LE: Floats, q_LE: Floats) -> Floats:
    middle_LE = (p_LE + q_LE) / 2
    both: Floats = (_relative_bits(p_LE, middle_LE) + _relative_bits(q_LE, middle_LE)) / 2
    return both


def _relative_bits(p_LE: Floats, q_LE: Floats) -> Floats:
    ratio_LE = np.divide(p_LE, q_LE, out=np.ones_like(p_LE), where=p_LE > 0)
    bits: Floats = (p_LE * np.log2(ratio_LE)).sum(axis=-1)
    return bits
