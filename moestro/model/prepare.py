"""A model made ready to infer on a CPU: every matrix packed for the kernels, once.

A prepared model computes in float32 whatever kind its weights are, cannot be trained or saved, and
gives a token the same bits in any company. Next: stack.py, ops/choose.py, ops/panels.py.
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
from moestro.ops.panels import (
    Layout,
    PackWeights,
    Panels,
    WeightKind,
    pack,
    pack_expansion,
    pack_gate_up,
)


@torch.no_grad()
def prepare(model: Transformer, kernels: Kernels, kind: WeightKind) -> None:
    """Pack all matrices of a model in place, rounding their numbers to a kind."""

    def pack_parameter(key: str, layout: Layout) -> Panels:
        weight = model.get_parameter(key)
        own = kind_of(key, kind)
        if layout == "gate_up":
            return pack_gate_up(weight if weight.dim() == 3 else weight[None], own)
        if layout == "rows":
            return pack(weight if weight.dim() == 3 else weight[None], own)
        up_HEC = weight.view(model.config.num_attention_heads, -1, model.config.kv_lora_rank)
        return pack_expansion(up_HEC, model.config.qk_nope_head_dim, layout, own)

    prepare_with(model, kernels, pack_parameter)


def kind_of(key: str, kind: WeightKind) -> WeightKind:
    """Return what a matrix of the model is rounded to where the rest is rounded to `kind`.

    int4 keeps the head and the MTP modules in int8: a wrong last digit shows there at once.
    """
    is_finer = kind == "int4" and key.startswith(("lm_head.", "embed_tokens.", "mtp."))
    return "int8" if is_finer else kind


@torch.no_grad()
def prepare_with(model: Transformer, kernels: Kernels, pack: PackWeights) -> None:
    """Take all matrices of a model packed; `pack` is asked by the names of its parameters."""
    fused = set(_fused_matrices(model))
    head = "embed_tokens.weight" if model.lm_head is None else "lm_head.weight"
    model.packed_head = Packed(kernels, pack(head, "rows"))
    if model.lm_head is not None:
        del model.lm_head.weight
    # A list: feed-forwards give up the modules that hold their matrices.
    for name, module in list(model.named_modules()):
        if isinstance(module, Gate):
            module.prepare(kernels)
        elif isinstance(module, Attention | Experts | FeedForward | Linear) and module not in fused:
            module.prepare(kernels, _within(name, pack))
    # float32: the kernels multiply in it, and activations are few beside weights.
    model.compute_dtype = torch.float32
    if isinstance(kernels, NativeKernels):
        model.stack = build_stack(model, kernels)


def _within(name: str, pack: PackWeights) -> PackWeights:
    return lambda key, layout: pack(f"{name}.{key}", layout)


def _fused_matrices(model: Transformer) -> Iterator[Linear]:
    """Yield the matrices that their owners take packed, split by head or fused with others."""
    if model.lm_head is not None:
        yield model.lm_head
    for module in model.modules():
        if isinstance(module, Attention):
            yield module.kv_b_proj
        elif isinstance(module, FeedForward):
            yield from (module.gate_up_proj, module.down_proj)
