"""Which kernels run here, and why: the native ones where they load and agree with their twin.

The environment variable MOESTRO_KERNELS forces one: torch, portable, avx2, avxvnni,
avx512vnni, avx512, amx.
Next: native.py, model/prepare.py.

Shapes: T tokens, K slots per token, D width, E experts, F expert width.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from moestro import settings
from moestro.ops.compare import one_thread
from moestro.ops.kernels import Kernels, PackedExperts, TorchKernels, Visits
from moestro.ops.native import NativeKernels, load_native
from moestro.ops.packing import pack, pack_gate_up
from moestro.ops.panels import Panels, WeightKind

log = logging.getLogger(__name__)

VARIABLE = "MOESTRO_KERNELS"
# Sums of this length in float32, in two orders, differ by far less.
_TOLERANCE = 1e-3
# What is wrong with an operation's kernels, or None (compare.py).
FindFault = Callable[[NativeKernels], str | None]
_CHECKED: tuple[WeightKind, ...] = ("float32", "bfloat16", "int8", "int4")


@dataclass(frozen=True)
class Chosen:
    """Kernels, and the reason for them in words."""

    kernels: Kernels
    reason: str

    @property
    def is_native(self) -> bool:
        """Whether they are anything but torch's own products."""
        return not isinstance(self.kernels, TorchKernels)


@cache
def chosen_kernels() -> Chosen:
    """Return what this process runs, checked once."""
    return choose_kernels(settings.variable(VARIABLE, "auto"))


def native_for(x: Tensor, dtype: torch.dtype, find_fault_in: FindFault) -> NativeKernels | None:
    """Return the native kernels if they run here and take numbers of this place and dtype.

    And if they do an operation like its twin: `find_fault_in` says what is wrong with them, and is
    asked before the operation's first call in a process.
    """
    if not (x.is_cpu and x.dtype == dtype):
        return None
    kernels = chosen_kernels().kernels
    if not isinstance(kernels, NativeKernels) or not _is_sound(kernels, find_fault_in):
        return None
    return kernels


@cache
def _is_sound(kernels: NativeKernels, find_fault_in: FindFault) -> bool:
    # The first call may be an engine's; what a check draws must carry gradients all the same.
    with torch.inference_mode(False):
        fault = find_fault_in(kernels)
    if fault is not None:
        log.warning("%s by the %s kernels: torch runs instead", fault, kernels.name)
    return fault is None


def choose_kernels(wish: str, load: Callable[[], ModuleType] = load_native) -> Chosen:
    """Decide for a wish: "auto", "torch" or an instruction set; ConfigError if it is unknown."""
    if wish == "torch":
        return Chosen(TorchKernels(), f"{VARIABLE} asks for it")
    try:
        native = load()
    except ImportError as error:
        return Chosen(TorchKernels(), f"the native kernels are not built or do not load: {error}")
    best: str = native.instruction_sets()[0]
    kernels = NativeKernels(best if wish == "auto" else wish, native)
    fault = find_fault(kernels)
    if fault is not None:
        log.warning("the %s kernels are wrong here and will not run: %s", kernels.name, fault)
        return Chosen(TorchKernels(), f"the {kernels.name} kernels failed their check: {fault}")
    reason = "the fastest for this processor" if wish == "auto" else f"{VARIABLE} asks for it"
    return Chosen(kernels, reason)


def find_fault(kernels: Kernels) -> str | None:
    """Compare kernels with their twin on small random input; None if all agree."""
    # Odd widths, and such as fill the tiles that bfloat16 takes.
    cases = [*((kind, 50, 18) for kind in _CHECKED), ("bfloat16", 64, 32)]
    return next(filter(None, (_find_fault(kernels, *case) for case in cases)), None)


def _find_fault(kernels: Kernels, kind: WeightKind, D: int, F: int) -> str | None:
    twin, generator = TorchKernels(), torch.Generator().manual_seed(0)
    T, K, E = 7, 3, 5
    x_TD = torch.randn(T, D, generator=generator)
    visits = Visits(
        torch.rand(T, E, generator=generator).topk(K).indices,
        torch.rand(T, K, generator=generator),
        torch.rand(T, K, generator=generator) > 0.2,
    )
    gate_up_EGD = torch.randn(E, 2 * F, D, generator=generator)
    down_EDF = torch.randn(E, D, F, generator=generator)
    with one_thread():
        packed, expected = (
            _pack_all(gate_up_EGD, down_EDF, kind, each) for each in (kernels, twin)
        )
    if not all(torch.equal(a.data_HnB, b.data_HnB) for a, b in zip(packed, expected, strict=True)):
        return f"packing in {kind} gives other bits"
    heads, gate_up, down = packed
    experts, x_TED = PackedExperts(gate_up, down), x_TD[:, None].expand(T, E, D)

    def compute(kernels: Kernels) -> dict[str, Tensor]:
        return {
            "multiply": kernels.multiply(x_TED, heads),
            "experts": kernels.apply_experts(x_TD, visits, experts),
            "sigmoid": kernels.sigmoid(x_TD),
        }

    # Ours on as many threads as they will have.
    ours = compute(kernels)
    with one_thread():
        theirs = compute(twin)
    for name, right in theirs.items():
        worst = float((ours[name] - right).abs().max() / right.abs().max())
        # Not "worst > tolerance": a NaN must count as a fault.
        if not worst <= _TOLERANCE:
            return f"{name} in {kind} is off by {worst:.1e} of the largest number"
    return None


def _pack_all(
    gate_up_EGD: Tensor, down_EDF: Tensor, kind: WeightKind, kernels: Kernels
) -> tuple[Panels, Panels, Panels]:
    return (
        pack(gate_up_EGD, kind, kernels),
        pack_gate_up(gate_up_EGD, kind, kernels),
        pack(down_EDF, kind, kernels),
    )
