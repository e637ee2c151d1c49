"""Muon: momentum whose matrices are orthogonalized before they are applied (Keller Jordan, 2024).

Scaled as in Moonlight (arXiv 2502.16982), so that AdamW's learning rate and weight decay carry
over. Stacked experts are orthogonalized one by one in a batch, in the dtype of the model's
arithmetic. Next: optimizer.py, ops/orthogonal.py.

Shapes: N stacked matrices, R rows, C columns.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moestro.ops.orthogonal import orthogonalize


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum for matrices; those of one shape are updated as a batch."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        num_steps: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "num_steps": num_steps,
            "dtype": dtype,
        }
        super().__init__(list(parameters), defaults)

    @torch.no_grad()
    # torch's overload that takes a closure and returns its loss is not offered: nothing needs it.
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update from the gradients."""
        assert closure is None
        for group in self.param_groups:
            for parameters in _by_shape(group["params"]):
                updates = [self._momentum(parameter, group["momentum"]) for parameter in parameters]
                stacked_NRC = torch.cat(
                    [
                        _matrices(parameter, u)
                        for parameter, u in zip(parameters, updates, strict=True)
                    ]
                )
                # As in the reference: what the iteration wants of its numbers is a rough size.
                rounded_NRC = stacked_NRC.to(group["dtype"])
                steps_NRC = orthogonalize(rounded_NRC, group["num_steps"])
                _apply(parameters, steps_NRC, group["lr"], group["weight_decay"])

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum"]
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def _by_shape(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: dict[tuple[torch.Size, int], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault((parameter.shape, _num_matrices(parameter)), []).append(parameter)
    return list(groups.values())


def _matrices(parameter: nn.Parameter, update: Tensor) -> Tensor:
    num_rows = update.shape[-2] // _num_matrices(parameter)
    return update.reshape(-1, num_rows, update.shape[-1])


def _num_matrices(parameter: nn.Parameter) -> int:
    number: int = getattr(parameter, "num_matrices", 1)
    return number


def _apply(
    parameters: list[nn.Parameter], steps_NRC: Tensor, lr: float, weight_decay: float
) -> None:
    # An orthogonal R x C matrix has entries of size 1 / sqrt(max(R, C)); AdamW's are about 0.2.
    scale = 0.2 * max(steps_NRC.shape[-2:]) ** 0.5
    per_parameter = steps_NRC.split(steps_NRC.shape[0] // len(parameters))
    for parameter, step in zip(parameters, per_parameter, strict=True):
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(step.reshape(parameter.shape), alpha=-lr * scale)
