"""Float32 masters of the matrices that a step multiplies in bfloat16.

Inside a step a matrix is its own copy in the arithmetic's dtype, made once after each update and
not at every use, and its gradients move straight into one float32 array that lasts. Outside, the
model's parameters are the masters, so that optimizers and files know nothing of this.
Next: step.py, optimizer.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moestro.model.experts import Experts
from moestro.model.linear import Linear
from moestro.model.model import Transformer


class Masters:
    """Swaps a model's matrices between masters and copies."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._matrices = list(_matrices(model))
        self._copies: dict[nn.Parameter, Tensor] = {}
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._summed: set[nn.Parameter] = set()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the model compute with copies; then parameters and gradients are float32 again."""
        dtype = self._model.compute_dtype
        swapped = [matrix for matrix in self._matrices if matrix.dtype != dtype]
        masters = [matrix.data for matrix in swapped]
        hooks = [matrix.register_post_accumulate_grad_hook(self._collect) for matrix in swapped]
        try:
            for matrix in swapped:
                matrix.data = self._copy(matrix, dtype)
            yield
        finally:
            for matrix, master, hook in zip(swapped, masters, hooks, strict=True):
                hook.remove()
                matrix.grad, matrix.data = None, master
                if matrix in self._summed:
                    matrix.grad = self._sums[matrix]
            self._summed.clear()

    def _copy(self, matrix: nn.Parameter, dtype: torch.dtype) -> Tensor:
        if matrix not in self._copies:
            self._copies[matrix] = torch.empty_like(matrix.data, dtype=dtype)
        return self._copies[matrix].copy_(matrix.data)

    def _collect(self, matrix: Tensor) -> None:
        """Add a gradient to the step's sum as soon as it is there, and give its memory back."""
        assert isinstance(matrix, nn.Parameter)
        assert matrix.grad is not None
        if matrix in self._summed:
            self._sums[matrix] += matrix.grad
        else:
            total = self._sums.get(matrix)
            if total is None:
                total = self._sums[matrix] = torch.empty_like(matrix, dtype=torch.float32)
            total.copy_(matrix.grad)
            self._summed.add(matrix)
        matrix.grad = None


def _matrices(model: Transformer) -> Iterator[nn.Parameter]:
    """Yield the parameters that are only ever used in the dtype of what they multiply."""
    for module in model.modules():
        if isinstance(module, Linear | Experts):
            yield from module.parameters(recurse=False)
