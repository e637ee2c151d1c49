"""Latent attention (MLA, arXiv 2412.19437 section 2.1.1), naive and absorbed.

The same numbers at other costs: `naive` expands every latent to keys and values, which is cheapest
for many queries; `absorbed` carries queries into the latent space, which is cheapest for few.
Knows latents and heads, not caches or layers. Next: causal.py, model/attention.py.

Shapes: B sequences, S queries, K keys (the last S of them are the queries' own tokens), H heads,
N and R query widths without and with rotary position, V value width, C latent width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.causal import attend_natively, causal_kernels
from moestro.ops.projected import Latents, Projected, Query
from moestro.ops.scores import attend_whole, is_cheaper

AttentionPath = Literal["auto", "naive", "absorbed"]


def attend_alone(projected: Projected, up_HEC: Tensor, path: AttentionPath) -> Tensor:
    """Attend of tokens that see each other only, the first of their sequences; returns out_BSHV."""
    S = projected.query_BSHQ.shape[1]
    if not is_absorbed(path, S, S, up_HEC, projected.rotary.width):
        kernels = causal_kernels(projected, up_HEC)
        if kernels is not None:
            return attend_natively(kernels, projected, up_HEC)
    return attend(projected.query(), projected.latents(), up_HEC, path)


def attend(query: Query, keys: Latents, up_HEC: Tensor, path: AttentionPath) -> Tensor:
    """Attend causally along a path, "auto" the one that multiplies less; returns out_BSHV."""
    S, K = query.nope_BSHN.shape[1], keys.latent_BKC.shape[1]
    way = absorbed if is_absorbed(path, S, K, up_HEC, keys.rope_BKR.shape[-1]) else naive
    return way(query.nope_BSHN, query.rope_BSHR, keys, up_HEC, query.scale)


def naive(
    nope_BSHN: Tensor, rope_BSHR: Tensor, keys: Latents, up_HEC: Tensor, scale: float
) -> Tensor:
    """Expand latents to keys and values, then attend causally; returns out_BSHV.

    `up_HEC` is `kv_b_proj` by heads: its first N rows make keys, the other V rows values (eq. 1-5).
    """
    B, K, _ = keys.latent_BKC.shape
    H, E, C = up_HEC.shape
    N, R = nope_BSHN.shape[-1], rope_BSHR.shape[-1]
    expanded_BKHE = F.linear(keys.latent_BKC, up_HEC.reshape(H * E, C)).view(B, K, H, E)
    key_BKHN, value_BKHV = expanded_BKHE.split([N, E - N], dim=-1)
    shared_BKHR = keys.rope_BKR[:, :, None].expand(B, K, H, R)
    query_BHSQ = torch.cat([nope_BSHN, rope_BSHR], dim=-1).transpose(1, 2)
    key_BHKQ = torch.cat([key_BKHN, shared_BKHR], dim=-1).transpose(1, 2)
    return _attend(query_BHSQ, key_BHKQ, value_BKHV.transpose(1, 2), scale).transpose(1, 2)


def absorbed(
    nope_BSHN: Tensor, rope_BSHR: Tensor, keys: Latents, up_HEC: Tensor, scale: float
) -> Tensor:
    """Attend in the latent space: apply `kv_b_proj` to queries and results, never to the keys."""
    N = nope_BSHN.shape[-1]
    key_HNC, value_HVC = up_HEC[:, :N], up_HEC[:, N:]
    query_BSHC = torch.einsum("bshn,hnc->bshc", nope_BSHN, key_HNC)
    scores_BHSK = torch.einsum("bshc,bkc->bhsk", query_BSHC, keys.latent_BKC)
    scores_BHSK = scores_BHSK + torch.einsum("bshr,bkr->bhsk", rope_BSHR, keys.rope_BKR)
    S, K = scores_BHSK.shape[-2:]
    # float32: a softmax over thousands of bfloat16 scores loses the small ones.
    scores_BHSK = scores_BHSK.float() * scale
    if S > 1:
        scores_BHSK = scores_BHSK.masked_fill(~_causal(S, K, scores_BHSK.device), float("-inf"))
    weights_BHSK = scores_BHSK.softmax(dim=-1).to(keys.latent_BKC.dtype)
    mixed_BSHC = torch.einsum("bhsk,bkc->bshc", weights_BHSK, keys.latent_BKC)
    return torch.einsum("bshc,hvc->bshv", mixed_BSHC, value_HVC)


def is_absorbed(
    path: AttentionPath, num_queries: int, num_keys: int, up_HEC: Tensor, rope_dim: int
) -> bool:
    """Say whether a path is the absorbed one; "auto" compares multiplications for one sequence."""
    if path != "auto":
        return path == "absorbed"
    H, E, C = up_HEC.shape
    pairs = num_queries * num_keys
    expand_and_attend = num_keys * H * E * C + pairs * H * (E + rope_dim)
    carry_and_attend = num_queries * H * E * C + pairs * H * (2 * C + rope_dim)
    return carry_and_attend < expand_and_attend


def _attend(query_BHSQ: Tensor, key_BHKQ: Tensor, value_BHKV: Tensor, scale: float) -> Tensor:
    S, K = query_BHSQ.shape[-2], key_BHKQ.shape[-2]
    Q, V = query_BHSQ.shape[-1], value_BHKV.shape[-1]
    if is_cheaper(query_BHSQ, K):
        query, key, value = (x.flatten(0, 1) for x in (query_BHSQ, key_BHKQ, value_BHKV))
        return attend_whole(query, key, value, scale).unflatten(0, query_BHSQ.shape[:2])
    if V < Q:
        # Fused attention wants equal widths; padding is several times cheaper than the unfused
        # fallback.
        value_BHKV = F.pad(value_BHKV, (0, Q - V))
    mask = None if S in (1, K) else _causal(S, K, query_BHSQ.device)
    out = F.scaled_dot_product_attention(
        query_BHSQ, key_BHKQ, value_BHKV, attn_mask=mask, is_causal=S == K, scale=scale
    )
    return out[..., :V]


def _causal(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    everything = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return everything.tril(num_keys - num_queries)
