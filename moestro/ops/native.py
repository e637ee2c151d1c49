"""The native kernels as functions of tensors: checks what C++ trusts, then hands over addresses.

What every model needs: what training alone does stands beside its twin, as in training.py.
Next: stack.py for whole layers; choose.py decides whether they run; the sources are in native/.

Shapes: T tokens, H matrices, D inputs, N outputs.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from moestro.errors import ConfigError
from moestro.ops.kernels import PackedExperts, Visits
from moestro.ops.panels import KINDS, PANEL, STRIP, Panels, Rows, strip_bytes
from moestro.ops.quantize import codes_shape, scales_shape

# What native/bands.h packs: whole panels, and whole pairs of them.
WIDTH_MULTIPLE = 32
# native/kernels.h numbers them.
FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
_CODE_DTYPES = {"int8": torch.int8, "int4": torch.uint8}


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
        self.native = native
        self.library = native.Library(instruction_set)

    def interleave(self, rows: Sequence[Rows], panels: Panels) -> None:
        """Write all in one parallel region."""
        if not rows:
            return
        step = 1 if rows[0].half is None else STRIP
        sources = [self._source(each, panels, step) for each in rows]
        data_HnB = panels.data_HnB
        assert data_HnB.is_cpu
        assert data_HnB.is_contiguous()
        assert data_HnB.shape[2] == strip_bytes(panels.kind, panels.depth)
        places = self.native.PanelPlaces(
            data=data_HnB.data_ptr(),
            format=FORMATS[panels.kind],
            depth=panels.depth,
            panels_of_source=panels.num_panels // step,
            panel_step=step,
        )
        self.library.interleave(sources, places, torch.get_num_threads())

    def multiply(self, x_THD: Tensor, weights: Panels) -> Tensor:
        """Multiply in one parallel region."""
        T, H, D = x_THD.shape
        assert (weights.num_matrices, weights.depth) == (H, D)
        x_THD = plain(x_THD, torch.float32)
        y_THN = torch.empty(T, H, weights.num_outputs)
        product = self.native.Product(
            x=x_THD.data_ptr(), num_rows=T, weights=self.matrices(weights), y=y_THN.data_ptr()
        )
        self.library.multiply(product, torch.get_num_threads())
        return y_THN

    def apply_experts(self, x_TD: Tensor, visits: Visits, experts: PackedExperts) -> Tensor:
        """Apply them in one parallel region; each expert's weights are read once."""
        T, D = x_TD.shape
        gate_up, down = experts.gate_up, experts.down
        assert gate_up.depth == D == down.num_outputs
        assert gate_up.num_matrices == down.num_matrices
        # The gate's panels and as many of the up projection's.
        assert gate_up.num_panels == 2 * -(-down.depth // PANEL)
        x_TD = plain(x_TD, torch.float32)
        experts_TK = plain(visits.experts_TK, torch.int64)
        weights_TK = plain(visits.weights_TK, torch.float32)
        is_used_TK = plain(visits.is_used_TK, torch.bool)
        assert experts_TK.shape == weights_TK.shape == is_used_TK.shape
        assert len(experts_TK) == T
        out_TD = torch.empty(T, D)
        product = self.native.ExpertProduct(
            x=x_TD.data_ptr(),
            visits=self.native.Visits(
                experts=experts_TK.data_ptr(),
                weights=weights_TK.data_ptr(),
                is_used=is_used_TK.data_ptr(),
                num_rows=T,
                num_slots=experts_TK.shape[1],
            ),
            experts=self.native.Experts(gate_up=self.matrices(gate_up), down=self.matrices(down)),
            out=out_TD.data_ptr(),
        )
        self.library.apply_experts(product, torch.get_num_threads())
        return out_TD

    def sigmoid(self, x: Tensor) -> Tensor:
        """Fill with sigmoids on the caller's thread: they are few."""
        x = plain(x, torch.float32)
        y = torch.empty_like(x)
        self.library.fill_sigmoids(x=x.data_ptr(), number=x.numel(), y=y.data_ptr())
        return y

    @property
    def is_vectorized(self) -> bool:
        """Whether they are written for what this processor has, not in plain C++."""
        return self.name != "portable"

    @property
    def has_bfloat16_products(self) -> bool:
        """Whether this processor multiplies bfloat16 itself, and torch is quick in it too."""
        return self.name in ("avx512", "amx")

    def takes_product(self, weight_ND: Tensor) -> bool:
        """Whether a matrix's widths are whole panels, or tiles where they multiply."""
        multiple = WIDTH_MULTIPLE if self.name == "amx" else PANEL
        return all(width % multiple == 0 for width in weight_ND.shape)

    def _source(self, rows: Rows, panels: Panels, step: int) -> Any:
        numbers_ND, scales_Ng, half = rows.numbers_ND, rows.scales_Ng, rows.half
        num_outputs, kind = len(numbers_ND), panels.kind
        assert (step == 1) == (half is None)
        assert 0 <= rows.matrix < panels.num_matrices
        assert half is None or 0 <= half < STRIP
        assert num_outputs <= panels.num_panels // step * PANEL
        assert numbers_ND.is_cpu
        assert numbers_ND.is_contiguous()
        if kind == "int8" or kind == "int4":
            assert numbers_ND.dtype == _CODE_DTYPES[kind]
            assert numbers_ND.shape == codes_shape((num_outputs, panels.depth), kind)
            assert scales_Ng is not None
            assert scales_Ng.dtype == torch.float16
            assert scales_Ng.is_contiguous()
            assert scales_Ng.shape == scales_shape((num_outputs, panels.depth))
        else:
            assert numbers_ND.dtype == KINDS[kind]
            assert numbers_ND.shape == (num_outputs, panels.depth)
        return self.native.SourceRows(
            data=numbers_ND.data_ptr(),
            scales=address_of(scales_Ng),
            num_rows=num_outputs,
            row_bytes=numbers_ND.nbytes // max(num_outputs, 1),
            first_panel=rows.matrix * panels.num_panels + (half or 0),
        )

    def matrices(self, weights: Panels, bias_N: Tensor | None = None) -> Any:
        """Describe packed weights to C++; the caller keeps the tensors alive."""
        data_HnB = weights.data_HnB
        H, _, B = data_HnB.shape
        assert data_HnB.is_contiguous()
        assert data_HnB.is_cpu
        assert strip_bytes(weights.kind, weights.depth) == B
        assert weights.num_outputs <= weights.num_panels * PANEL
        assert bias_N is None or bias_N.shape == (weights.num_outputs,)
        return self.native.Matrices(
            data=data_HnB.data_ptr(),
            format=FORMATS[weights.kind],
            num_matrices=H,
            num_outputs=weights.num_outputs,
            depth=weights.depth,
            num_panels=weights.num_panels,
            bias=address_of(bias_N),
        )


def address_of(tensor: Tensor | None) -> int:
    """Return where a tensor lies, which the caller keeps alive; 0, C++'s null, for None."""
    return 0 if tensor is None else tensor.data_ptr()


def plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as C++ reads it: of a dtype, one number behind the other."""
    assert tensor.is_cpu
    # Asked first: what torch does for nothing takes a microsecond, in each product of a step.
    return (tensor if tensor.dtype == dtype else tensor.to(dtype)).contiguous()
