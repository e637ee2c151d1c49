"""Attention of a whole pass in training: from projections to outputs, differentiated in one go.

The latent's norm, `kv_b_proj`, rotations and causal attention, whose gradients are written where
the projections want them, so that nothing is split, laid out or added anew. The twin is what
latent.py does step by step. Next: latent.py, native/attention_training.h.

Shapes: B sequences, S tokens, T = B * S, H heads, N and R query widths without and with rotary
position, Q = N + R, V value width, E = N + V, G = H * E, C latent width, M = C + R.
"""

from typing import Any

import torch
from torch import Tensor

from moestro.ops import products
from moestro.ops.choose import native_for
from moestro.ops.compare import compare, draw
from moestro.ops.native import WIDTH_MULTIPLE, NativeKernels
from moestro.ops.panels import PANEL
from moestro.ops.projected import Projected, Rotary
from moestro.ops.rowwise import head_rows, norm_rows, normalize, turn_rows

# Scores of 64 queries of more keys than this leave a core's cache.
MOST_TOKENS = 4096


def causal_kernels(projected: Projected, up_HEC: Tensor) -> NativeKernels | None:
    """Return the native kernels if they take projections and a `kv_b_proj` of these shapes."""
    query_BSHQ = projected.query_BSHQ
    S, Q = query_BSHQ.shape[1], query_BSHQ.shape[-1]
    N = Q - projected.rotary.width
    widths = (S, Q, up_HEC.shape[1] - N)
    is_fitting = all(width % WIDTH_MULTIPLE == 0 for width in widths)
    is_fitting = is_fitting and N % PANEL == 0 == up_HEC.shape[2] % PANEL
    if not is_fitting or not 0 < S <= MOST_TOKENS:
        return None
    return native_for(query_BSHQ, torch.bfloat16, find_fault)


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twin: norm, rotations, `kv_b_proj` and softmax one after the other."""
    B, S, H, N, R, V, C = 2, 96, 2, 16, 16, 32, 32
    angles_SP = draw(S, R // 2, dtype=torch.float32)
    rotary = Rotary(angles_SP.cos(), angles_SP.sin(), is_interleaved=True)

    def project(query_BSHQ: Tensor, compressed_BSM: Tensor, norm_C: Tensor) -> Projected:
        return Projected(query_BSHQ, compressed_BSM, norm_C, 1e-6, rotary, scale=0.3)

    def native(*parts: Tensor) -> Tensor:
        return attend_natively(kernels, project(*parts[:3]), parts[3])

    def twin(*parts: Tensor) -> Tensor:
        projected, up_HEC = project(*parts[:3]), parts[3]
        query, keys = projected.query(), projected.latents()
        expanded_BSHE = torch.einsum("bsc,hec->bshe", keys.latent_BKC, up_HEC)
        scores_BHSK = torch.einsum("bshn,bkhn->bhsk", query.nope_BSHN, expanded_BSHE[..., :N])
        scores_BHSK = scores_BHSK + torch.einsum("bshr,bkr->bhsk", query.rope_BSHR, keys.rope_BKR)
        future_SS = torch.ones(S, S, dtype=torch.bool).triu(1)
        weights_BHSK = (scores_BHSK * query.scale).masked_fill(future_SS, -torch.inf).softmax(-1)
        return torch.einsum("bhsk,bkhv->bshv", weights_BHSK, expanded_BSHE[..., N:])

    parts = [
        draw(B, S, H, N + R),
        draw(B, S, C + R, seed=1),
        draw(C, seed=2, dtype=torch.float32),
        draw(H, N + V, C, seed=3, scale=C**-0.5),
    ]
    return compare("attention", native, twin, parts)


def attend_natively(kernels: NativeKernels, projected: Projected, up_HEC: Tensor) -> Tensor:
    """Return out_BSHV, differentiable in projections, norm and `kv_b_proj` by heads."""
    out_BSHV: Tensor = _Causal.apply(
        kernels,
        projected.query_BSHQ,
        projected.compressed_BSM,
        projected.norm_C,
        up_HEC,
        projected,
    )
    return out_BSHV


class _Causal(torch.autograd.Function):
    """Beside what has gradients stands the whole, for what has none."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: NativeKernels,
        query_BSHQ: Tensor,
        compressed_BSM: Tensor,
        norm_C: Tensor,
        up_HEC: Tensor,
        given: Projected,
    ) -> Tensor:
        query_BSHQ, compressed_BSM = query_BSHQ.contiguous(), compressed_BSM.contiguous()
        norm_C = norm_C.float().contiguous()
        B, S, H, Q = query_BSHQ.shape
        (_, E, C), rotary = up_HEC.shape, given.rotary
        R = rotary.width
        N = Q - R
        assert compressed_BSM.shape == (B, S, C + R)
        assert norm_C.shape == (C,)
        assert compressed_BSM.dtype == up_HEC.dtype == torch.bfloat16
        latent_TC, up_GC = query_BSHQ.new_empty(B * S, C), up_HEC.flatten(0, 1)
        rows = norm_rows(kernels, compressed_BSM.flatten(0, 1), norm_C, given.epsilon)
        normalize(kernels, rows, latent_TC)
        expanded_BSHE = products.forward(kernels, latent_TC, up_GC).view(B, S, H, E)
        turned = [query_BSHQ.new_empty(B, S, heads, R) for heads in (H, 1)]
        for to, part in zip(turned, _unturned(query_BSHQ, compressed_BSM, R), strict=True):
            turn_rows(kernels, part, rotary.cos_SP, rotary.sin_SP, to, rotary.is_interleaved)
        shape = kernels.native.AttentionShape(
            num_sequences=B,
            length=S,
            num_heads=H,
            nope=N,
            rotary=R,
            value=E - N,
            scale=given.scale,
        )
        out_BSHV = query_BSHQ.new_empty(B, S, H, E - N)
        log_totals_BHS = torch.empty(B, H, S)
        work = kernels.native.AttentionForward(
            shape=shape,
            inputs=_parts(kernels, query_BSHQ[..., :N], turned, expanded_BSHE),
            out=head_rows(kernels, out_BSHV),
            log_totals=log_totals_BHS.data_ptr(),
        )
        kernels.library.forward_attention(work, torch.get_num_threads())
        ctx.kernels, ctx.shape, ctx.given = kernels, shape, given
        ctx.save_for_backward(
            query_BSHQ,
            compressed_BSM,
            norm_C,
            up_HEC,
            latent_TC,
            expanded_BSHE,
            *turned,
            out_BSHV,
            log_totals_BHS,
        )
        return out_BSHV

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_BSHQ, compressed_BSM, norm_C, up_HEC, latent_TC, expanded_BSHE, *rest = (
            ctx.saved_tensors
        )
        *turned, out_BSHV, log_totals_BHS = rest
        kernels, rotary = ctx.kernels, ctx.given.rotary
        B, S, H, Q = query_BSHQ.shape
        R, E = rotary.width, expanded_BSHE.shape[-1]
        dout_BSHV = grads[0].to(torch.bfloat16).contiguous()
        dquery_BSHQ, dcompressed_BSM = (
            torch.empty_like(query_BSHQ),
            torch.empty_like(compressed_BSM),
        )
        dexpanded_BSHE = torch.empty_like(expanded_BSHE)
        dturned = [torch.empty_like(part) for part in turned]
        dropes_BHSR = torch.empty(B, H, S, R)
        work = kernels.native.AttentionBackward(
            shape=ctx.shape,
            inputs=_parts(kernels, query_BSHQ[..., : Q - R], turned, expanded_BSHE),
            out=head_rows(kernels, out_BSHV),
            dout=head_rows(kernels, dout_BSHV),
            log_totals=log_totals_BHS.data_ptr(),
            gradients=_parts(kernels, dquery_BSHQ[..., : Q - R], dturned, dexpanded_BSHE),
            dkey_ropes=dropes_BHSR.data_ptr(),
        )
        kernels.library.backward_attention(work, torch.get_num_threads())
        for part, to in zip(dturned, _unturned(dquery_BSHQ, dcompressed_BSM, R), strict=True):
            turn_rows(kernels, part, rotary.cos_SP, rotary.sin_SP, to, rotary.is_interleaved, True)
        dlatent_TC, dup_GC = products.backward(
            kernels, latent_TC, up_HEC.flatten(0, 1), dexpanded_BSHE.view(B * S, H * E)
        )
        dnorm_C = torch.empty(norm_C.shape)
        norm_work = kernels.native.NormBackward(
            norm=norm_rows(kernels, compressed_BSM.flatten(0, 1), norm_C, ctx.given.epsilon),
            dy=dlatent_TC.data_ptr(),
            drows=0,
            dx=dcompressed_BSM.data_ptr(),
            dx_step=dcompressed_BSM.shape[-1],
            dweight=dnorm_C.data_ptr(),
        )
        kernels.library.backward_norm(norm_work, torch.get_num_threads())
        return None, dquery_BSHQ, dcompressed_BSM, dnorm_C, dup_GC.view_as(up_HEC), None


def _unturned(query_BSHQ: Tensor, compressed_BSM: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return what positions turn: the last numbers of queries and of compressed rows."""
    return query_BSHQ[..., -width:], compressed_BSM[:, :, None, -width:]


def _parts(
    kernels: NativeKernels, nope_BSHN: Tensor, turned: list[Tensor], expanded_BSHE: Tensor
) -> Any:
    rope_BSHR, rope_BS1R = turned
    key_BSHN, value_BSHV = expanded_BSHE.tensor_split([nope_BSHN.shape[-1]], dim=-1)
    return kernels.native.AttentionParts(
        query_nope=head_rows(kernels, nope_BSHN),
        query_rope=head_rows(kernels, rope_BSHR),
        key_nope=head_rows(kernels, key_BSHN),
        key_rope=head_rows(kernels, rope_BS1R),
        value=head_rows(kernels, value_BSHV),
    )
