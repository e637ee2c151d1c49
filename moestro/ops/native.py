"""The native kernels as functions of tensors: checks what C++ trusts, then hands over addresses.

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

# What native/bands.h multiplies: whole panels, and whole pairs of them.
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
        x_THD = _plain(x_THD, torch.float32)
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
        x_TD = _plain(x_TD, torch.float32)
        experts_TK = _plain(visits.experts_TK, torch.int64)
        weights_TK = _plain(visits.weights_TK, torch.float32)
        is_used_TK = _plain(visits.is_used_TK, torch.bool)
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

    def forward_experts(
        self,
        x_TD: Tensor,
        visits: Visits,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        before: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """Return out_TD of experts in training, and hidden_PG for their way back; bfloat16.

        To `out_TD` are added up to two others, before it is rounded.
        """
        parts = _TrainedExperts(self.native, visits, gate_up_EGD, down_EDF)
        x_TD, before = parts.rows(x_TD), [parts.rows(each) for each in before]
        out_TD = torch.empty_like(x_TD)
        # Room for all slots: counting those in use would cost more than leaving some untouched.
        hidden_PG = x_TD.new_empty(parts.is_used_TK.numel(), gate_up_EGD.shape[1])
        assert len(before) <= 2
        first_TD, second_TD = (*before, None, None)[:2]
        work = self.native.ExpertsForward(
            x=x_TD.data_ptr(),
            before=address_of(first_TD),
            also_before=address_of(second_TD),
            visits=parts.visits,
            experts=parts.experts,
            hidden=hidden_PG.data_ptr(),
            out=out_TD.data_ptr(),
        )
        self.library.forward_experts(work, torch.get_num_threads())
        return out_TD, hidden_PG

    def backward_experts(
        self,
        dout_TD: Tensor,
        x_TD: Tensor,
        hidden_PG: Tensor,
        visits: Visits,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        before_TD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of inputs, visits' weights (float32) and both matrices.

        To the inputs' are added others, if there are any.
        """
        parts = _TrainedExperts(self.native, visits, gate_up_EGD, down_EDF)
        x_TD, dout_TD = parts.rows(x_TD), parts.rows(dout_TD)
        before_TD = None if before_TD is None else parts.rows(before_TD)
        dx_TD, dweights_TK = torch.empty_like(x_TD), torch.empty_like(parts.weights_TK)
        dgate_up_EGD, ddown_EDF = (torch.empty_like(m) for m in (parts.gate_up_EGD, parts.down_EDF))
        assert hidden_PG.dtype == torch.bfloat16
        assert hidden_PG.shape == (parts.is_used_TK.numel(), gate_up_EGD.shape[1])
        assert hidden_PG.is_contiguous()
        work = self.native.ExpertsBackward(
            x=x_TD.data_ptr(),
            before=address_of(before_TD),
            hidden=hidden_PG.data_ptr(),
            dout=dout_TD.data_ptr(),
            visits=parts.visits,
            experts=parts.experts,
            dx=dx_TD.data_ptr(),
            dweights=dweights_TK.data_ptr(),
            dgate_up=dgate_up_EGD.data_ptr(),
            ddown=ddown_EDF.data_ptr(),
        )
        self.library.backward_experts(work, torch.get_num_threads())
        return dx_TD, dweights_TK, dgate_up_EGD, ddown_EDF

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

    def forward_product(self, x_TD: Tensor, weight_ND: Tensor) -> Tensor:
        """Return y_TN = x W^T in training; bfloat16."""
        x_TD, weight_ND = _plain(x_TD, torch.bfloat16), _plain(weight_ND, torch.bfloat16)
        y_TN = x_TD.new_empty(len(x_TD), len(weight_ND))
        work = self.native.ProductForward(
            product=self._trained_product(x_TD, weight_ND), y=y_TN.data_ptr()
        )
        self.library.forward_product(work, torch.get_num_threads())
        return y_TN

    def backward_product(
        self, x_TD: Tensor, weight_ND: Tensor, dy_TN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of rows and matrix."""
        x_TD, weight_ND = _plain(x_TD, torch.bfloat16), _plain(weight_ND, torch.bfloat16)
        dy_TN = _plain(dy_TN, torch.bfloat16)
        assert dy_TN.shape == (len(x_TD), len(weight_ND))
        dx_TD, dweight_ND = torch.empty_like(x_TD), torch.empty_like(weight_ND)
        work = self.native.ProductBackward(
            product=self._trained_product(x_TD, weight_ND),
            dy=dy_TN.data_ptr(),
            dx=dx_TD.data_ptr(),
            dweight=dweight_ND.data_ptr(),
        )
        self.library.backward_product(work, torch.get_num_threads())
        return dx_TD, dweight_ND

    def differentiate_loss(
        self, x_TD: Tensor, head_VD: Tensor, targets_T: Tensor, weights_T: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return nats_T and the gradients of sum(weights * nats): dx_TD, and dhead_VD in float32.

        Rows and head are bfloat16; IndexError tells of a target beyond the vocabulary.
        """
        x_TD, head_VD = _plain(x_TD, torch.bfloat16), _plain(head_VD, torch.bfloat16)
        targets_T, weights_T = _plain(targets_T, torch.int64), _plain(weights_T, torch.float32)
        (T, D), V = x_TD.shape, len(head_VD)
        assert head_VD.shape == (V, D)
        assert targets_T.shape == weights_T.shape == (T,)
        assert D % WIDTH_MULTIPLE == 0 == V % WIDTH_MULTIPLE
        nats_T, dx_TD, dhead_VD = torch.empty(T), torch.empty_like(x_TD), torch.empty(V, D)
        work = self.native.LossRows(
            x=x_TD.data_ptr(),
            head=head_VD.data_ptr(),
            targets=targets_T.data_ptr(),
            weights=weights_T.data_ptr(),
            num_rows=T,
            width=D,
            vocabulary=V,
            nats=nats_T.data_ptr(),
            dx=dx_TD.data_ptr(),
            dhead=dhead_VD.data_ptr(),
        )
        self.library.differentiate_loss(work, torch.get_num_threads())
        return nats_T, dx_TD, dhead_VD

    def sigmoid(self, x: Tensor) -> Tensor:
        """Fill with sigmoids on the caller's thread: they are few."""
        x = _plain(x, torch.float32)
        y = torch.empty_like(x)
        self.library.fill_sigmoids(x=x.data_ptr(), number=x.numel(), y=y.data_ptr())
        return y

    def _trained_product(self, x_TD: Tensor, weight_ND: Tensor) -> Any:
        (T, D), N = x_TD.shape, len(weight_ND)
        assert weight_ND.shape == (N, D)
        assert self.takes_product(weight_ND)
        return self.native.TrainedProduct(
            x=x_TD.data_ptr(), weight=weight_ND.data_ptr(), num_rows=T, width=D, num_outputs=N
        )

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


class _TrainedExperts:
    """Experts in training as C++ takes them; keeps alive what the addresses point to."""

    def __init__(
        self, native: ModuleType, visits: Visits, gate_up_EGD: Tensor, down_EDF: Tensor
    ) -> None:
        E, D, F = down_EDF.shape
        T, K = visits.experts_TK.shape
        self.shape = T, D
        self.experts_TK = _plain(visits.experts_TK, torch.int64)
        self.weights_TK = _plain(visits.weights_TK, torch.float32)
        self.is_used_TK = _plain(visits.is_used_TK, torch.bool)
        self.gate_up_EGD = _plain(gate_up_EGD, torch.bfloat16)
        self.down_EDF = _plain(down_EDF, torch.bfloat16)
        assert self.weights_TK.shape == self.is_used_TK.shape == (T, K)
        assert gate_up_EGD.shape == (E, 2 * F, D)
        assert D % WIDTH_MULTIPLE == 0 == F % WIDTH_MULTIPLE
        self.visits = native.Visits(
            experts=self.experts_TK.data_ptr(),
            weights=self.weights_TK.data_ptr(),
            is_used=self.is_used_TK.data_ptr(),
            num_rows=T,
            num_slots=K,
        )
        self.experts = native.TrainedExperts(
            gate_up=self.gate_up_EGD.data_ptr(),
            down=self.down_EDF.data_ptr(),
            num_experts=E,
            width=D,
            hidden_width=F,
        )

    def rows(self, tensor_TD: Tensor) -> Tensor:
        assert tensor_TD.shape == self.shape
        return _plain(tensor_TD, torch.bfloat16)


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    assert tensor.is_cpu
    # Asked first: what torch does for nothing takes a microsecond, in each product of a step.
    return (tensor if tensor.dtype == dtype else tensor.to(dtype)).contiguous()
