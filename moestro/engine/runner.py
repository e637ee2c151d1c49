"""One step through the model: a batch -> hidden states, logits, what the gates did.

Knows tensors and pages, not requests' wishes. Next: model/model.py, pages.py.

Shapes: T tokens of the batch, N chosen rows, D width, V vocabulary, L MoE layers, K slots per
token.
"""

import logging
from collections import abc
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from moestro.engine.batch import Batch
from moestro.engine.pages import PagedCache, Pages
from moestro.engine.request import Visits
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.model.trace import GateRecord, Trace
from moestro.ops.picking import Picked, PickRow
from moestro.ops.rows import RowMultiples, measure_row_multiple, round_up
from moestro.ops.stack import Choices, StackStep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gates(Choices):
    """Each token's experts in the main model's MoE layers, as answers and meters tell of them."""

    has_all: bool = False

    @cached_property
    def num_experts(self) -> list[float]:
        """How many routed experts each token took, mean over layers; with `has_all` all."""
        if self.has_all:
            return [float(self.is_used_LTK.shape[2])] * self.is_used_LTK.shape[1]
        is_used_LTK = self.is_used_LTK.numpy(force=True)
        means: list[float] = (is_used_LTK.sum(axis=(0, 2)) / len(is_used_LTK)).tolist()
        return means

    def visits(self, row: int) -> Visits:
        """Return one token's (expert, weight) by layer, best first."""
        parts = (self.experts_LTK, self.weights_LTK, self.is_used_LTK)
        experts, weights, is_used = (part[:, row].tolist() for part in parts)
        return tuple(
            tuple((expert, weight) for expert, weight, used in zip(*layer, strict=True) if used)
            for layer in zip(experts, weights, is_used, strict=True)
        )


class Runner:
    """A model and its pages."""

    def __init__(
        self, model: Transformer, pages: Pages, multiples: RowMultiples, may_expand: bool
    ) -> None:
        """Take a model; `may_expand` as ops/stack.py has it."""
        self.model = model
        self.pages = pages
        self.row_multiple = multiples.tokens
        self._query_multiple = multiples.queries
        self._table_VD = model.embed_tokens.weight
        self.device = self._table_VD.device
        self._stack = model.stack
        self._may_expand = may_expand
        if self._stack is not None and may_expand:
            self._stack.expand_prompts()
        self._described: tuple[Batch, StackStep] | None = None

    def forward(self, batch: Batch) -> tuple[Tensor, Gates | None]:
        """Run the main model; returns hidden_TD and what the gates chose."""
        if self._stack is not None:
            hidden_TD = self._embed(batch.tokens_T)
            layers = range(self.model.config.num_hidden_layers)
            chosen = self._stack.run(hidden_TD, layers, self._step(batch), has_final_norm=True)
            return hidden_TD, self._gates(chosen, batch)
        trace = Trace()
        hidden_BTD = self.model(
            batch.tokens_T[None].to(self.device),
            budget=self._budget(batch),
            cache=self._cache(batch),
            trace=trace,
            row_multiple=self.row_multiple,
        )
        return hidden_BTD[0], _join(trace.gates)

    @property
    def can_decode(self) -> bool:
        """Whether answers can go on by several tokens in a call."""
        return self._stack is not None

    def decode(
        self,
        batch: Batch,
        rows: abc.Sequence[PickRow],
        stops: abc.Sequence[Collection[int]],
        num_steps: int,
        wake_file: int | None,
    ) -> tuple[list[Picked], Tensor, Gates | None]:
        """Run a burst; returns picks step by step, hidden_TD of the last, and all steps' gates."""
        assert self._stack is not None
        layers = range(self.model.config.num_hidden_layers)
        came = self._stack.decode(
            batch.tokens_T, layers, self._step(batch), rows, stops, num_steps, wake_file
        )
        return came.picked, came.hidden_ND, self._gates(came.chosen, batch)

    def look_ahead(self, batch: Batch, hidden_TD: Tensor, next_T: Tensor, depth: int) -> Tensor:
        """Run MTP module `depth` behind the same tokens; `next_T` follow them."""
        if self._stack is not None:
            drafted_TD = self._embed(next_T)
            layer = self.model.config.num_hidden_layers + depth
            self._stack.draft(drafted_TD, hidden_TD, layer, self._step(batch))
            return drafted_TD
        out_BTD = self.model.look_ahead(
            hidden_TD[None],
            next_T[None].to(self.device),
            depth,
            budget=self._budget(batch),
            cache=self._cache(batch),
            row_multiple=self.row_multiple,
        )
        return out_BTD[0]

    def logits(self, hidden_TD: Tensor, rows: abc.Sequence[int]) -> Tensor:
        """Return logits_NV behind chosen rows."""
        num = round_up(len(rows), self.row_multiple)
        if num != hidden_TD.shape[0] or any(row != index for index, row in enumerate(rows)):
            filled = [*rows, *[0] * (num - len(rows))]
            hidden_TD = hidden_TD.index_select(0, torch.tensor(filled, device=self.device))
        logits_NV = self.model.logits(hidden_TD)
        return logits_NV if num == len(rows) else logits_NV[: len(rows)]

    def _gates(self, chosen: Choices, batch: Batch) -> Gates | None:
        if not chosen.experts_LTK.shape[0]:
            return None
        return Gates(**vars(chosen), has_all=batch.budget_T is None)

    def _budget(self, batch: Batch) -> Tensor | None:
        return None if batch.budget_T is None else batch.budget_T[None].to(self.device)

    def _embed(self, tokens_T: Tensor) -> Tensor:
        # The same as the model's own, without a module's ways: they cost more than the copy.
        return torch.embedding(self._table_VD, tokens_T).float()

    def _step(self, batch: Batch) -> StackStep:
        """Describe a batch to the stack; one that goes on in place is what it was."""
        if self._described is None or self._described[0] is not batch:
            self._described = batch, self._describe(batch)
        return self._described[1]

    def _describe(self, batch: Batch) -> StackStep:
        fractions_T = None
        if batch.budget_T is not None:
            fractions_T = self.model.fractions(batch.budget_T[None], batch.tokens_T[None])
        return StackStep(
            batch.positions_T,
            batch.slots_T,
            fractions_T,
            batch.sequences_S3,
            batch.tables,
            self.pages.pages_LAZW,
            self._may_expand,
        )

    def _cache(self, batch: Batch) -> PagedCache:
        return PagedCache(
            self.pages,
            batch.positions_T.to(self.device),
            batch.slots_T.to(self.device),
            batch.groups(self.device),
            self._query_multiple,
        )


def choose_row_multiples(model: Transformer) -> RowMultiples:
    """Return the multiples of rows at which this machine keeps a token's bits in any company."""
    if model.stack is not None:
        # The kernels keep a row's bits by design, and nothing is torch's to multiply.
        return RowMultiples()
    device = str(model.embed_tokens.weight.device)
    multiple = measure_row_multiple(product_shapes(model.config), model.compute_dtype, device)
    if multiple is None:
        log.warning(
            "this machine's matrix products do not keep a row's bits: a request may differ in its"
            " last bits beside others"
        )
    multiple = multiple or 1
    # Without a stack attention is torch's to multiply, if nothing else is.
    return RowMultiples(tokens=1 if model.is_prepared else multiple, queries=multiple)


def product_shapes(config: ModelConfig) -> list[tuple[int, int, int]]:
    """Return the shapes (H, N, D) of a model's matrix products, for ops/rows.py."""
    D, H, C = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    N, R, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    queries = H * config.qk_head_dim
    rank = config.q_lora_rank
    shapes = [(1, queries, D)] if rank is None else [(1, rank, D), (1, queries, rank)]
    shapes += [(1, C + R, D), (1, D, H * V), (H, C, N), (H, V, C), (1, config.vocab_size, D)]
    for width in (config.intermediate_size, config.moe_intermediate_size):
        shapes += [(1, width, D), (1, 2 * width, D), (1, D, width)]
    if config.num_moe_layers:
        shapes.append((1, config.n_routed_experts, D))
        shared = config.moe_intermediate_size * config.n_shared_experts
        shapes += [(1, shared, D), (1, D, shared)] if shared else []
    return shapes


def _join(records: abc.Sequence[GateRecord]) -> Gates | None:
    if not records:
        return None
    return Gates(
        torch.stack([record.experts_TK for record in records]),
        torch.stack([record.weights_TK for record in records]),
        torch.stack([record.is_used_TK for record in records]),
    )
