"""Latent attention over a paged cache, for many sequences at once.

The absorbed path of latent.py, on blocks that lie anywhere: keys are gathered by block table, in
whole blocks, and what a query may not see is masked. So the sums over keys have the same order
whatever else is in the batch. `paged_one_by_one` is the specification. Knows blocks, not whose they
are. Next: engine/pages.py.

Shapes: T tokens of the batch, G sequences of a group, S queries of each, H heads, N and R query
widths without and with rotary position, V value width, C latent width, W = C + R, M blocks per
sequence, Z tokens per block, K = M * Z keys, A blocks in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.expansion import Expansion
from moestro.ops.latent import absorbed
from moestro.ops.projected import Latents, Query
from moestro.ops.rows import round_up

# Scores of this many queries and all heads at once: more would only fill memory.
_MOST_QUERIES = 128
# Libraries cut long sums where they like; sums of this many keys, added in order, are cut by us.
_KEYS_PER_SUM = 128


@dataclass(frozen=True)
class Group:
    """Sequences with equally many new tokens: rows `start` to `start + G * S` of the batch.

    `lengths_GS` is how many keys each query sees, itself included; the keys lie in `table_GM`.
    """

    start: int
    table_GM: Tensor
    lengths_GS: Tensor

    @property
    def rows(self) -> slice:
        """The group's rows of the batch."""
        return slice(self.start, self.start + self.lengths_GS.numel())


def paged(
    query: Query, pages_AZW: Tensor, groups: Sequence[Group], up: Expansion, row_multiple: int
) -> Tensor:
    """Attend; `query` has B = 1 and T rows, rows of no group give zeros. Returns out_THV."""
    query_THC = up.absorb(query.nope_BSHN[0])
    query_THW = torch.cat([query_THC, query.rope_BSHR[0]], dim=-1)
    mixed_THC = torch.zeros_like(query_THC)
    for group in groups:
        mixed_THC[group.rows] = _mix(query_THW[group.rows], pages_AZW, group, query, row_multiple)
    return up.expand(mixed_THC, query.nope_BSHN.shape[-1])


def paged_one_by_one(
    query: Query, pages_AZW: Tensor, groups: Sequence[Group], up_HEC: Tensor
) -> Tensor:
    """Do the same, one query after the other."""
    C = up_HEC.shape[-1]
    T, H, N = query.nope_BSHN.shape[1:]
    out_THV = query.nope_BSHN.new_zeros(T, H, up_HEC.shape[1] - N)
    for group in groups:
        S = group.lengths_GS.shape[1]
        for index, length in enumerate(group.lengths_GS.flatten().tolist()):
            row = slice(group.start + index, group.start + index + 1)
            keys_KW = pages_AZW[group.table_GM[index // S]].flatten(0, 1)[None, :length]
            keys = Latents(keys_KW[..., :C], keys_KW[..., C:])
            nope, rotary = query.nope_BSHN[:, row], query.rope_BSHR[:, row]
            out_THV[row] = absorbed(nope, rotary, keys, up_HEC, query.scale)[0]
    return out_THV


def _mix(
    query_QHW: Tensor, pages_AZW: Tensor, group: Group, query: Query, row_multiple: int
) -> Tensor:
    """Return the latents' mixture for each of a group's Q = G * S queries."""
    G, S = group.lengths_GS.shape
    H, W = query_QHW.shape[1:]
    Z, C = pages_AZW.shape[1], W - query.rope_BSHR.shape[-1]
    keys_GKW = pages_AZW.index_select(0, group.table_GM.flatten()).view(G, -1, W)
    query_GSHW = query_QHW.view(G, S, H, W)
    mixed_GSHC = query_QHW.new_empty(G, S, H, C)
    for start in range(0, S, _MOST_QUERIES):
        part = slice(start, start + _MOST_QUERIES)
        lengths_GP = group.lengths_GS[:, part]
        # Later keys are nobody's in this part; whole blocks, so that sums keep their order.
        K = round_up(int(lengths_GP.max()), Z)
        mixed_GSHC[:, part] = _attend(
            query_GSHW[:, part], keys_GKW[:, :K], lengths_GP, query.scale, row_multiple, C
        )
    return mixed_GSHC.view(G * S, H, C)


def _attend(
    query_GSHW: Tensor,
    keys_GKW: Tensor,
    lengths_GS: Tensor,
    scale: float,
    row_multiple: int,
    latent_width: int,
) -> Tensor:
    G, S, H, W = query_GSHW.shape
    K, rows = keys_GKW.shape[1], S * H
    query_GRW = query_GSHW.reshape(G, rows, W)
    if rows % row_multiple:
        query_GRW = F.pad(query_GRW, (0, 0, 0, round_up(rows, row_multiple) - rows))
    scores_GRK = torch.bmm(query_GRW, keys_GKW.transpose(1, 2)).float() * scale
    is_hidden_GSK = torch.arange(K, device=keys_GKW.device) >= lengths_GS[..., None]
    # The padding rows stay open: a row that sees nothing would be NaN.
    is_hidden_GRK = is_hidden_GSK[:, :, None].expand(G, S, H, K).reshape(G, rows, K)
    scores_GRK[:, :rows].masked_fill_(is_hidden_GRK, float("-inf"))
    # float32: a softmax over thousands of bfloat16 scores loses the small ones.
    weights_GRK = scores_GRK.softmax(dim=-1).to(keys_GKW.dtype)
    mixed_GRC = keys_GKW.new_zeros(G, query_GRW.shape[1], latent_width)
    for start in range(0, K, _KEYS_PER_SUM):
        part = slice(start, start + _KEYS_PER_SUM)
        mixed_GRC.baddbmm_(weights_GRK[..., part], keys_GKW[:, part, :latent_width])
    return mixed_GRC[:, :rows].reshape(G, S, H, latent_width)
