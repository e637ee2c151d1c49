"""Which kernels the package runs while a test asks for certain ones."""

import pytest

from moestro.ops import choose
from moestro.ops.kernels import TorchKernels
from moestro.ops.native import NativeKernels


def use(kernels: NativeKernels | TorchKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run these instead of the processor's best."""
    chosen = choose.Chosen(kernels, "a test asks for it")
    monkeypatch.setattr(choose, "chosen_kernels", lambda: chosen)
