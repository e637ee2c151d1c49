"""Matrices into panels: rounded to a kind, or in codes already. Next: panels.py for the layout.

Shapes: H matrices of one shape, N outputs, D inputs, E experts or rows of `kv_b_proj` per head,
F expert width, G = 2F, C latent width.
"""

from torch import Tensor

from moestro.ops.kernels import Kernels
from moestro.ops.panels import KINDS, Layout, Panels, Rows, WeightKind, empty_panels
from moestro.ops.quantize import Quantized, quantize

# Rows that wait to be written at once: enough for all threads, little beside a model.
_BATCH_BYTES = 2**26


class PanelWriter:
    """Panels in the making: matrices, or the gate and up projections of experts in turn.

    Every matrix is put in once, and stays as it is until `finish`.
    """

    def __init__(
        self,
        kernels: Kernels,
        kind: WeightKind,
        num_matrices: int,
        shape: tuple[int, int],
        is_gate_up: bool = False,
    ) -> None:
        """Make room for matrices of a shape (N, D)."""
        self._kernels = kernels
        self._panels = empty_panels(kind, num_matrices, shape, is_gate_up)
        self._is_gate_up = is_gate_up
        self._waiting: list[Rows] = []
        self._waiting_bytes = 0

    @property
    def kind(self) -> WeightKind:
        """What numbers are rounded to."""
        return self._panels.kind

    def put(self, weight_ND: Tensor, matrix: int, half: int = 0) -> None:
        """Put a matrix in, rounding its numbers; `half` 1 is the up projection."""
        kind = self._panels.kind
        if kind == "int8" or kind == "int4":
            self.put_codes(quantize(weight_ND, kind), matrix, half)
        else:
            self._add(weight_ND.to(KINDS[kind]), None, matrix, half)

    def put_codes(self, weights: Quantized, matrix: int, half: int = 0) -> None:
        """Put a matrix in that is quantized already: bits change places and nothing else."""
        assert (weights.kind, weights.depth) == (self._panels.kind, self._panels.depth)
        self._add(weights.codes, weights.scales.contiguous(), matrix, half)

    def finish(self) -> Panels:
        """Write what still waits and return the panels."""
        self._flush()
        return self._panels

    def _add(self, numbers_ND: Tensor, scales_Ng: Tensor | None, matrix: int, half: int) -> None:
        place = half if self._is_gate_up else None
        self._waiting.append(Rows(numbers_ND.contiguous(), scales_Ng, matrix, place))
        self._waiting_bytes += numbers_ND.nbytes
        if self._waiting_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._kernels.interleave(self._waiting, self._panels)
        self._waiting, self._waiting_bytes = [], 0


def pack(weight_HND: Tensor, kind: WeightKind, kernels: Kernels) -> Panels:
    """Pack matrices, rounding their numbers to a kind."""
    H, N, D = weight_HND.shape
    writer = PanelWriter(kernels, kind, H, (N, D))
    for matrix, weight_ND in enumerate(weight_HND.detach()):
        writer.put(weight_ND, matrix)
    return writer.finish()


def pack_expansion(
    up_HEC: Tensor, num_key_rows: int, layout: Layout, kind: WeightKind, kernels: Kernels
) -> Panels:
    """Pack one half of `kv_b_proj`, whose first rows of each head make keys."""
    if layout == "keys":
        return pack(up_HEC[:, :num_key_rows].transpose(1, 2), kind, kernels)
    return pack(up_HEC[:, num_key_rows:], kind, kernels)


def pack_gate_up(gate_up_EGD: Tensor, kind: WeightKind, kernels: Kernels) -> Panels:
    """Pack gate and up projections in turn, panel by panel, so that one task has both."""
    E, G, D = gate_up_EGD.shape
    writer = PanelWriter(kernels, kind, E, (G // 2, D), is_gate_up=True)
    for expert, gate_up_GD in enumerate(gate_up_EGD.detach()):
        for half, weight_FD in enumerate(gate_up_GD.chunk(2)):
            writer.put(weight_FD, expert, half)
    return writer.finish()
