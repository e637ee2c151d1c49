"""The native kernels as functions of tensors: checks what C++ trusts, then hands over addresses.

Next: choose.py decides whether they run; the sources are in native/.

Shapes: T tokens, H matrices, D inputs, N outputs, C columns: N and what fills the last panel.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from moestro.errors import ConfigError
from moestro.ops.kernels import PackedExperts, Visits
from moestro.ops.panels import Panels

_FORMATS = {torch.float32: 0, torch.bfloat16: 1}


def load_native() -> ModuleType:
    """Import the compiled module; ImportError says why it cannot be."""
    # torch has been imported, and with it the OpenMP that the module shares with it.
    return importlib.import_module("moestro.ops._native")


class NativeKernels:
    """The kernels of one instruction set, on as many threads as torch has."""

    def __init__(self, instruction_set: str, native: ModuleType) -> None:
        if instruction_set not in native.instruction_sets():
            sets = ", ".join(native.instruction_sets())
            raise ConfigError(
                f"this processor or build has no {instruction_set!r} kernels: choose one of {sets}"
            )
        self.name = instruction_set
        self._library = native.Library(instruction_set)

    def multiply(self, x_THD: Tensor, weights: Panels) -> Tensor:
        """Multiply in one parallel region."""
        T, H, D = x_THD.shape
        assert (weights.num_matrices, weights.depth) == (H, D)
        x_THD = _plain(x_THD, torch.float32)
        y_THC = torch.empty(T, H, weights.num_columns)
        self._library.multiply(
            x_THD.data_ptr(),
            T,
            H,
            weights.data_HnDW.data_ptr(),
            _format(weights),
            D,
            weights.data_HnDW.shape[1],
            y_THC.data_ptr(),
            torch.get_num_threads(),
        )
        return _without_filling(y_THC, weights)

    def apply_experts(self, x_TD: Tensor, visits: Visits, experts: PackedExperts) -> Tensor:
        """Apply them in one parallel region; each expert's weights are read once."""
        T, D = x_TD.shape
        gate_up, down = experts.gate_up, experts.down
        assert gate_up.depth == D == down.num_outputs
        assert _format(gate_up) == _format(down)
        x_TD = _plain(x_TD, torch.float32)
        experts_TK = _plain(visits.experts_TK, torch.int64)
        weights_TK = _plain(visits.weights_TK, torch.float32)
        is_used_TK = _plain(visits.is_used_TK, torch.bool)
        assert experts_TK.shape == weights_TK.shape == is_used_TK.shape
        out_TC = torch.empty(T, down.num_columns)
        self._library.apply_experts(
            x_TD.data_ptr(),
            experts_TK.data_ptr(),
            weights_TK.data_ptr(),
            is_used_TK.data_ptr(),
            T,
            experts_TK.shape[1],
            down.num_matrices,
            down.depth,
            gate_up.data_HnDW.data_ptr(),
            gate_up.data_HnDW.shape[1],
            down.data_HnDW.data_ptr(),
            down.data_HnDW.shape[1],
            _format(down),
            D,
            out_TC.data_ptr(),
            torch.get_num_threads(),
        )
        return _without_filling(out_TC, down)

    def sigmoid(self, x: Tensor) -> Tensor:
        """Fill with sigmoids on the caller's thread: they are few."""
        x = _plain(x, torch.float32)
        y = torch.empty_like(x)
        self._library.fill_sigmoids(x.data_ptr(), x.numel(), y.data_ptr())
        return y


def _format(weights: Panels) -> int:
    assert weights.data_HnDW.is_contiguous()
    assert weights.data_HnDW.is_cpu
    return _FORMATS[weights.data_HnDW.dtype]


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    assert tensor.is_cpu
    return tensor.to(dtype).contiguous()


def _without_filling(y_C: Tensor, weights: Panels) -> Tensor:
    if weights.num_columns == weights.num_outputs:
        return y_C
    return y_C[..., : weights.num_outputs].contiguous()
