"""A loaded model made ready to infer on a CPU: every matrix packed for the kernels, once.

A prepared model computes in float32 whatever kind its weights are, cannot be trained or saved, and
gives a token the same bits in any company. Next: ops/choose.py, ops/panels.py.
"""

from collections.abc import Iterator

import torch

from moestro.model.attention import Attention
from moestro.model.experts import Experts
from moestro.model.feedforward import FeedForward
from moestro.model.gate import Gate
from moestro.model.linear import Linear
from moestro.model.model import Transformer
from moestro.model.stack import build_stack
from moestro.ops.kernels import Kernels, Packed
from moestro.ops.native import NativeKernels
from moestro.ops.panels import WeightKind, pack


@torch.no_grad()
def prepare(model: Transformer, kernels: Kernels, kind: WeightKind) -> None:
    """Pack all matrices of a model in place, rounding their numbers to a kind.

    int4 keeps the head and the MTP modules in int8: a wrong last digit shows there at once.
    """
    finer: WeightKind = "int8" if kind == "int4" else kind
    _prepare_head(model, kernels, finer)
    fused = set(_fused_matrices(model))
    drafting = set(model.mtp.modules())
    # A list: feed-forwards give up the modules that hold their matrices.
    for module in list(model.modules()):
        if isinstance(module, Gate):
            module.prepare(kernels)
        elif isinstance(module, Attention | Experts | FeedForward | Linear) and module not in fused:
            module.prepare(kernels, finer if module in drafting else kind)
    # float32: the kernels multiply in it, and activations are few beside weights.
    model.compute_dtype = torch.float32
    if isinstance(kernels, NativeKernels):
        model.stack = build_stack(model, kernels)


def _fused_matrices(model: Transformer) -> Iterator[Linear]:
    """Yield the matrices that their owners pack, split by head or fused with others."""
    if model.lm_head is not None:
        yield model.lm_head
    for module in model.modules():
        if isinstance(module, Attention):
            yield module.kv_b_proj
        elif isinstance(module, FeedForward):
            yield from (module.gate_up_proj, module.down_proj)


def _prepare_head(model: Transformer, kernels: Kernels, kind: WeightKind) -> None:
    head = model.embed_tokens if model.lm_head is None else model.lm_head
    model.packed_head = Packed(kernels, pack(head.weight[None], kind))
    if model.lm_head is not None:
        del model.lm_head.weight
