"""A model made ready to infer on a CPU: every matrix packed for the kernels, once.

Between its products it computes in float32 whatever kind its weights are. It cannot be trained or
saved, and gives a token the same bits in any company. Next: stack.py, ops/choose.py, ops/panels.py.
"""

import logging
from collections.abc import Iterator
from functools import cache, partial

import torch

from moestro.model.attention import Attention
from moestro.model.config import ModelConfig
from moestro.model.experts import Experts
from moestro.model.feedforward import FeedForward
from moestro.model.gate import Gate
from moestro.model.linear import Linear
from moestro.model.model import Transformer
from moestro.model.stack import build_stack
from moestro.ops.kernels import Kernels, Packed
from moestro.ops.native import NativeKernels
from moestro.ops.packing import pack, pack_expansion, pack_gate_up
from moestro.ops.panels import Layout, PackWeights, Panels, WeightKind
from moestro.ops.stack import StackStep

log = logging.getLogger(__name__)

# Everything that a stack has a branch for, at the smallest size.
_CHECKED = ModelConfig(
    vocab_size=8, hidden_size=40, intermediate_size=48, moe_intermediate_size=34,
    num_hidden_layers=2, num_attention_heads=2, n_routed_experts=8, num_experts_per_tok=3,
    n_group=2, topk_group=1, first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=18,
    qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=10,
)  # fmt: skip
_TOLERANCE = 1e-3


@torch.no_grad()
def prepare(model: Transformer, kernels: Kernels, kind: WeightKind) -> None:
    """Pack all matrices of a model in place, rounding their numbers to a kind."""
    prepare_with(
        model,
        kernels,
        lambda key, layout: _pack_parameter(model, kernels, key, layout, kind_of(key, kind)),
    )


def kind_of(key: str, kind: WeightKind) -> WeightKind:
    """Return what a matrix of the model is rounded to where the rest is rounded to `kind`.

    int4 keeps the head and the MTP modules in int8: a wrong last digit shows there at once.
    """
    is_finer = kind == "int4" and key.startswith(("lm_head.", "embed_tokens.", "mtp."))
    return "int8" if is_finer else kind


@torch.no_grad()
def prepare_with(model: Transformer, kernels: Kernels, pack: PackWeights) -> None:
    """Take all matrices of a model packed; `pack` is asked by the names of its parameters."""
    _pack_all(model, kernels, pack)
    # The kernels take and give float32 and round what meets weights of other kinds themselves.
    model.compute_dtype = torch.float32
    if isinstance(kernels, NativeKernels):
        fault = find_stack_fault(kernels)
        if fault is None:
            model.stack = build_stack(model, kernels)
        else:
            log.warning("the %s kernels' layers are wrong here: %s", kernels.name, fault)


@cache
def find_stack_fault(kernels: NativeKernels) -> str | None:
    """Compare a small stack with its modules, once for each kind of kernels; None if they agree."""
    generator = torch.Generator().manual_seed(0)
    model = Transformer(_CHECKED).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    # Enough for a prompt to be expanded.
    num_tokens, block_size = 23, 4
    tokens_BT = torch.randint(_CHECKED.vocab_size, (1, num_tokens), generator=generator)
    expected_TD = model(tokens_BT)[0]
    _pack_all(model, kernels, partial(_pack_parameter, model, kernels, kind="float32"))
    stack, positions_T = build_stack(model, kernels), torch.arange(num_tokens)
    stack.expand_prompts()
    width = _CHECKED.kv_lora_rank + _CHECKED.qk_rope_head_dim
    num_blocks, num_layers = -(-num_tokens // block_size), _CHECKED.num_hidden_layers
    for may_expand in (False, True):
        found_TD = model.embed(tokens_BT[0])
        step = StackStep(
            positions_T, positions_T, None, torch.tensor([[0, num_tokens, 0]]),
            torch.arange(num_blocks), torch.zeros(num_layers, num_blocks, block_size, width),
            may_expand,
        )  # fmt: skip
        stack.run(found_TD, range(num_layers), step, True)
        worst = float((found_TD - expected_TD).abs().max() / expected_TD.abs().max())
        # Not "worst > tolerance": a NaN must count as a fault.
        if not worst <= _TOLERANCE:
            return f"off by {worst:.1e} of the largest number"
    return None


def _pack_all(model: Transformer, kernels: Kernels, pack: PackWeights) -> None:
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


def _pack_parameter(
    model: Transformer, kernels: Kernels, key: str, layout: Layout, kind: WeightKind
) -> Panels:
    weight = model.get_parameter(key)
    if layout == "gate_up":
        return pack_gate_up(weight if weight.dim() == 3 else weight[None], kind, kernels)
    if layout == "rows":
        return pack(weight if weight.dim() == 3 else weight[None], kind, kernels)
    up_HEC = weight.view(model.config.num_attention_heads, -1, model.config.kv_lora_rank)
    return pack_expansion(up_HEC, model.config.qk_nope_head_dim, layout, kind, kernels)


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
