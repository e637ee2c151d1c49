"""How well a model predicts documents it has not seen, and how its experts share that work.

An `Evaluation` is a sum over tokens: evaluations of two sets of documents add up to that of both.
Knows token ids, not text. Next: lm/review.py.

Shapes: B windows, S tokens, L MoE layers, E experts, K slots (histogram index k = k experts),
M moments.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.errors import CheckpointError
from moestro.model.model import Transformer
from moestro.model.trace import Trace
from moestro.ops.cross_entropy import linear_nats
from moestro.ops.grouped import FEW_SHAPES
from moestro.ops.native import WIDTH_MULTIPLE

LN2 = float(np.log(2))
# A starved expert serves under this share of its fair load.
STARVED_SHARE = 0.1
_BATCH_TOKENS = 8192
# A packed head's logits of this many tokens at once.
_HEAD_TOKENS = 512


@dataclass(frozen=True)
class TokenDocument:
    """One document's token ids and the bytes of text that they stand for."""

    tokens: Sequence[int]
    num_bytes: int


@dataclass(frozen=True)
class Evaluation:
    """Sums over all tokens of some documents.

    Load and experts exclude MTP modules, which predict no text here. `moments_LM` holds, for each
    layer, sums of 1, k, k^2, x, x^2 and k x over tokens, where k is a token's experts and x its
    nats.
    """

    documents: int
    bytes: int
    tokens: int
    nats: float
    load_LE: np.ndarray
    histogram_LK: np.ndarray
    moments_LM: np.ndarray

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Return the evaluation of both sets of documents."""
        names = [field.name for field in fields(self)]
        return Evaluation(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-probability of a token."""
        return self.nats / max(1, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits needed for a byte of text, which no choice of tokenizer flatters."""
        return self.nats / LN2 / max(1, self.bytes)

    @property
    def mean_experts(self) -> float | None:
        """Routed experts per token, mean over layers; None for a dense model."""
        if not len(self.load_LE):
            return None
        return float(self.load_LE.sum() / max(1.0, self.histogram_LK.sum()))

    @property
    def max_violation(self) -> list[float]:
        """For each MoE layer, the busiest expert's load over the mean, minus 1."""
        return [float(row.max() / max(row.mean(), 1e-9) - 1) for row in self.load_LE]

    @property
    def starved(self) -> list[list[int]]:
        """For each MoE layer, the experts that served under a tenth of their share."""
        return [np.flatnonzero(row < STARVED_SHARE * row.mean()).tolist() for row in self.load_LE]

    @property
    def experts_nats_correlation(self) -> list[float]:
        """For each MoE layer, the correlation over tokens of experts used with nats."""
        return [_correlation(row) for row in self.moments_LM]

    def to_dict(self) -> dict[str, object]:
        """Return what `moestro score --json` prints."""
        totals = self.histogram_LK.sum(axis=0)
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "nats_per_token": self.nats_per_token,
            "bits_per_byte": self.bits_per_byte,
            "mean_experts": self.mean_experts,
            "experts_histogram": {str(k): int(n) for k, n in enumerate(totals) if n},
            "experts_histogram_by_layer": self.histogram_LK.astype(int).tolist(),
            "max_violation": self.max_violation,
            "load": self.load_LE.astype(int).tolist(),
            "starved": self.starved,
            "experts_nats_correlation": self.experts_nats_correlation,
        }


def evaluate(
    model: Transformer,
    documents: Sequence[TokenDocument],
    *,
    start_id: int,
    budget: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Predict every token of every document from those before it, each document on its own.

    A document begins behind `start_id`. One that is longer than the model's context is read in
    windows that overlap by half, so that every token but the first window's has at least half a
    context before it. `on_progress` hears the share of windows that is read.
    """
    context = model.config.max_position_embeddings
    windows = [w for d in documents for w in _windows([start_id, *d.tokens], context)]
    windows.sort(key=lambda window: len(window.tokens), reverse=True)
    total, num_read = _empty(model, documents), 0
    remaining = iter(windows)
    with torch.no_grad():
        while batch := _take(remaining):
            total = total + _evaluate_batch(model, batch, budget)
            num_read += len(batch)
            if on_progress is not None:
                on_progress(num_read / len(windows))
    return total


@dataclass(frozen=True)
class _Window:
    """Tokens in, and how many of the first predictions belong to an earlier window."""

    tokens: Sequence[int]
    num_seen: int


def _windows(tokens: Sequence[int], context: int) -> list[_Window]:
    windows, end = [], 0
    last = len(tokens) - 1
    while end < last:
        start = 0 if end == 0 else max(0, end - context // 2)
        stop = min(start + context, last)
        windows.append(_Window(tokens[start : stop + 1], end - start))
        end = stop
    return windows


def _take(windows: Iterator[_Window]) -> list[_Window]:
    first = next(windows, None)
    if first is None:
        return []
    more = max(0, _BATCH_TOKENS // len(first.tokens) - 1)
    return [first, *islice(windows, more)]


def _evaluate_batch(model: Transformer, batch: list[_Window], budget: float | None) -> Evaluation:
    device = model.embed_tokens.weight.device
    # Whole words of rows, which native attention takes: what fills them up is not scored.
    longest = max(len(window.tokens) for window in batch) - 1
    S = min(-(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, model.config.max_position_embeddings)
    tokens_BS = torch.zeros(len(batch), S + 1, dtype=torch.int64)
    is_scored_BS = torch.zeros(len(batch), S, dtype=torch.bool)
    for row, window in enumerate(batch):
        tokens_BS[row, : len(window.tokens)] = torch.as_tensor(window.tokens)
        is_scored_BS[row, window.num_seen : len(window.tokens) - 1] = True
    tokens_BS = tokens_BS.to(device)
    kept = is_scored_BS.flatten().nonzero()[:, 0].to(device)
    trace = Trace()
    hidden_BSD = model(tokens_BS[:, :-1], budget=budget, trace=trace, row_multiple=FEW_SHAPES)
    rows = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])[kept]
    nats = nats_of(model, rows, tokens_BS[:, 1:].reshape(-1)[kept]).double()
    return Evaluation(0, 0, len(kept), float(nats.sum()), *_routing(model, trace, kept, nats))


def check_finite(nats: Iterable[float]) -> None:
    """Raise CheckpointError unless all are numbers."""
    if not all(map(math.isfinite, nats)):
        raise CheckpointError(
            "the model's log-probabilities are not numbers: its weights are damaged or its training"
            " diverged: take an earlier checkpoint"
        )


def nats_of(model: Transformer, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Return the surprise, nats_N, at each target token behind its hidden state."""
    if not model.is_prepared:
        return linear_nats(hidden_ND, model.head_weight(), targets_N)
    parts = zip(hidden_ND.split(_HEAD_TOKENS), targets_N.split(_HEAD_TOKENS), strict=True)
    each = [F.cross_entropy(model.logits(rows), ids, reduction="none") for rows, ids in parts]
    return torch.cat(each) if each else hidden_ND.new_zeros(0)


def _routing(
    model: Transformer, trace: Trace, kept: Tensor, nats: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    config = model.config
    loads, histograms, moments = [], [], []
    for record in trace.gates:
        is_used, experts = record.is_used_TK[kept], record.experts_TK[kept]
        k = is_used.sum(dim=1)
        loads.append(experts[is_used].bincount(minlength=config.n_routed_experts))
        histograms.append(k.bincount(minlength=config.num_experts_per_tok + 1))
        k = k.double()
        sums = [torch.ones_like(k), k, k * k, nats, nats * nats, k * nats]
        moments.append(torch.stack([s.sum() for s in sums]))
    empty = _empty(model, [])
    if not loads:
        return empty.load_LE, empty.histogram_LK, empty.moments_LM
    stacked = [torch.stack(part).double().cpu().numpy() for part in (loads, histograms, moments)]
    return stacked[0], stacked[1], stacked[2]


def _empty(model: Transformer, documents: Sequence[TokenDocument]) -> Evaluation:
    config = model.config
    num_layers = config.num_hidden_layers - config.first_k_dense_replace
    return Evaluation(
        documents=len(documents),
        bytes=sum(document.num_bytes for document in documents),
        tokens=0,
        nats=0.0,
        load_LE=np.zeros((num_layers, config.n_routed_experts)),
        histogram_LK=np.zeros((num_layers, config.num_experts_per_tok + 1)),
        moments_LM=np.zeros((num_layers, 6)),
    )


def _correlation(moments: np.ndarray) -> float:
    n, k, kk, x, xx, kx = moments
    spread = (n * kk - k * k) * (n * xx - x * x)
    return float((n * kx - k * x) / np.sqrt(spread)) if spread > 0 else 0.0
